"""The installed command, run as its user runs it; nothing of ours is imported here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

EXECUTOR: Final = str(Path(sys.executable).with_name("executor"))
TASKS: Final = Path(__file__).parents[2] / "tasks_wasm"
WAIT_S: Final = 60


def wasm(name: str) -> str:
    """A module of the repository: `wordcount`, `hostile/trap`."""
    return str(TASKS / name / f"{name.rpartition('/')[2]}.wasm")


def free_port() -> int:
    """A port that nobody listens on now, below those that the kernel gives to whoever asks."""
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Done:
    """How one call ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """What it printed."""
        return self.out.decode()

    def objects(self) -> list[dict[str, Any]]:
        """What it printed with `--json`: one object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def object(self) -> dict[str, Any]:
        """The one object it printed."""
        (found,) = self.objects()
        return found


@dataclass
class Shell:
    """A folder to call `executor` in, with an environment of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The caller's environment without what would change the command's behaviour."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EXECUTOR_", "OTEL_", "PYTHON", "COVERAGE"))
        }
        return {**kept, **self.env}

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
              ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start the command; options as Popen's."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [EXECUTOR, *arguments],
            **{
                "cwd": self.folder,
                "env": {**self.environment(), **(env or {})},
                **pipes,
                **options,
            },
        )

    def call(
        self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> Done:
        """Run the command to its end, whatever that is."""
        given = {"stdin": subprocess.PIPE} if stdin is not None else {}
        return finish(self.start(*arguments, env=env, **given), stdin)

    def call_all(self, *calls: list[str]) -> list[Done]:
        """Run commands at the same time; how they ended, in their order."""
        with ThreadPoolExecutor(max_workers=2) as threads:
            return list(threads.map(lambda call: self.call(*call), calls))

    def run(self, *arguments: str, stdin: bytes | None = None) -> Done:
        """Run the command; it must succeed."""
        done = self.call(*arguments, stdin=stdin)
        assert done.code == 0, f"executor {' '.join(arguments)}\n{done.text}\n{done.err}"
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        """The one object that a successful call prints with `--json`."""
        return self.run(*arguments, "--json").object()


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Done:
    """Wait for a process's end."""
    try:
        out, err = process.communicate(stdin, timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, out or b"", (err or b"").decode("utf-8", "replace"))


@dataclass
class House(Shell):
    """A folder made by `init`, and `serve --embedded` running in it on a port of its own."""

    port: int = 0
    server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its NATS listens."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What `serve` wrote."""
        return (self.folder / "serve.log").read_text("utf-8", "replace")

    def open(self, *options: str) -> None:
        """`init`, then `serve` until it says that it is ready."""
        self.folder.mkdir()
        self.run("init", ".", *options)
        self.port = free_port()
        config = self.folder / "executor.toml"
        text = config.read_text().replace("127.0.0.1:4222", f"127.0.0.1:{self.port}")
        config.write_text(text)
        self.serve()

    def serve(self) -> None:
        """Start `serve`; the ready file is a pipe, so that readiness is an event."""
        pipe = self.folder / "ready"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        try:
            with (self.folder / "serve.log").open("ab") as log:
                self.server = self.start(
                    "serve", "--embedded", "--ready-file", str(pipe), stdout=log, stderr=log
                )
            ready, _, _ = select.select([reader], [], [], WAIT_S)
            assert ready, self.log
            assert int(os.read(reader, 32)) == self.server.pid
        finally:
            os.close(reader)

    def serve_again(self) -> None:
        """Start it once more in the same folder."""
        (self.folder / "ready").unlink(missing_ok=True)
        self.serve()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to `serve`."""
        assert self.server is not None
        self.server.send_signal(number)

    def close(self) -> int:
        """Drain and end; the exit status."""
        assert self.server is not None
        self.server.terminate()
        try:
            return self.server.wait(WAIT_S)
        finally:
            self.server.kill()
            self.server = None

    def publish(self, name: str) -> None:
        """Sign and publish a module of the repository."""
        target = f"{name.rpartition('/')[2]}.wasm"
        self.run("sign", wasm(name), "--key", "keys/author.key", "-o", target)
        self.run("publish", target)
