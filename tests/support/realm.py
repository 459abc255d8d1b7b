"""A nats-server with accounts, roles and logins as `executor nats config` writes them.

Two tenants, an executor of both and one of the first, a publisher and two operators: one who may
steer, one who may sign trust.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from executor import config as configs
from executor.cli.nats_folder import Folder
from executor.cli.nats_roles import Issuer
from executor.config import Config
from executor.transport.connection import Connection
from executor.transport.settings import Settings, from_config
from tests.servers import Events, NatsServer, connect
from tests.support import guests
from tests.support.served import ROOT, Serve

TENANT, OTHER = "acme", "zebra"

_CONFIG = f"""
[host]
environment = "test"
name = "local"
key_file = "executor.key"
[keys]
operator_file = "operator.key"
[nats]
url = "nats://127.0.0.1:4222"
logins = "nats/users"
login = "operator_ann"
LINES
[delivery]
backoff_ms = [50]
outcomes_max_mib = 16
[[tenant]]
name = "acme"
queue_max_mib = 16
ceiling = {{ capabilities = ["log", "kv"] }}
[[tenant]]
name = "zebra"
queue_max_mib = 16
[[grant]]
tenant = "acme"
task = "*"
why = "for tests"
log = true
kv = {{ prefix = "own/", mode = "write" }}
[[publisher]]
name = "author"
key = "{guests.AUTHOR.public.text}"
tasks = ["acme/*"]
[[executor]]
name = "local"
key = "{guests.HOST.public.text}"
[[executor]]
name = "near"
key = "{guests.OPERATOR.public.text}"
tenants = ["acme"]
[[operator]]
name = "ann"
key = "{guests.STRANGER.public.text}"
[[operator]]
name = "sig"
key = "{guests.FORGER.public.text}"
[[binding]]
role = "operator"
who = ["ann"]
why = "keeps it running"
[[binding]]
role = "submitter"
who = ["ann"]
why = "schedules"
[[binding]]
role = "releaser"
who = ["ann"]
why = "says what is live"
[[binding]]
role = "policy-signer"
who = ["sig"]
why = "signs"
"""


class Realm:
    """See the module; `with_jwt` for operator mode, `tls` for certificates of both sides."""

    def __init__(self, folder: Path, *, with_jwt: bool = False, tls: bool = False) -> None:
        self.folder = folder
        self.path = folder / "executor.toml"
        self.nats = Folder(folder / "nats")
        self.with_jwt = with_jwt
        self.tls = tls
        folder.mkdir(exist_ok=True)
        for name, secret in (("executor", guests.HOST), ("operator", guests.STRANGER)):
            (folder / f"{name}.key").write_bytes(secret.pem())
            (folder / f"{name}.key").chmod(0o600)
        self.write()
        made = self.nats.make_logins(self.config().document)
        assert "client_acme" in made
        if tls:
            self.nats.make_tls("nats://127.0.0.1", self.nats.logins())
        self.conf()
        self.server = NatsServer(self.nats.path, (self.nats.path / "server.conf").read_text())
        self.lives: list[Serve] = []

    def conf(self) -> None:
        """Write the server's file anew."""
        self.nats.write(self.config(), with_jwt=self.with_jwt, now=int(time.time()))

    def write(self, lines: str = "", *, without: str = "") -> None:
        """Write executor.toml; `lines` under [nats], `without` left out."""
        if self.tls:
            lines += '\nca_file = "nats/tls/ca.pem"'
        self.path.write_text(_CONFIG.replace("LINES", lines).replace(without or "\0", ""))

    def config(self) -> Config:
        """As the verbs read it, for the running server."""
        loaded = configs.load(self.path, environ={}, required=True)
        return loaded.with_values(nats__url=self.server.url) if hasattr(self, "server") else loaded

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        for life in self.lives:
            life.close()
        self.server.stop()

    # As whom.

    def issuer(self, seconds: int) -> Issuer:
        """A mint's."""
        return Issuer(self.nats, self.config, seconds)

    def settings(self, login: str, seconds: int = 60) -> Settings:
        """A login's; in operator mode with a credentials file of so many seconds."""
        found = from_config(self.config(), "test", [login])
        if not self.with_jwt:
            return found
        file = self.folder / f"{login}-{time.monotonic_ns()}.creds"
        file.touch(mode=0o600)
        minted = self.issuer(seconds).issue(login)
        file.write_bytes(self.nats.credentials(login, minted))
        return Settings(
            found.url, str(file), inbox_prefix=found.inbox_prefix, ca_file=found.ca_file,
            cert_file=found.cert_file, key_file=found.key_file,
        )  # fmt: skip

    async def connect(self, login: str, events: Events | None = None) -> Connection:
        """A connection of a login."""
        return await connect(self.server, events, self.settings(login))

    # The command.

    async def call(self, *arguments: str, code: int = 0) -> str:
        """Run a verb; what it printed."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "executor.cli.main", "--config", str(self.path), *arguments],
            cwd=self.folder, env={"EXECUTOR_NATS_URL": self.server.url, "PYTHONPATH": str(ROOT)},
            capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.stderr.decode()}\n{self.server.log()}"
        return (done.stdout if code == 0 else done.stderr).decode()

    async def json(self, *arguments: str) -> Any:
        """Run a verb; the object it printed."""
        return json.loads(await self.call(*arguments, "--json"))

    async def serve(self) -> Serve:
        """A running executor."""
        text = self.path.read_text()
        self.path.write_text(text.replace("nats://127.0.0.1:4222", self.server.url))
        life = Serve(self, len(self.lives))
        self.lives.append(life)
        await life.line("serving")
        return life
