"""The verb `init`: a folder with a configuration, keys and a first task of one's own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import click

from executor import config as configs
from executor.cli.base import Verb, state, unwritable, write_file
from executor.cli.modules import write_secret
from executor.cli.signing import adopt, changing
from executor.cli.trust import POLICY_FILE, local_keys, single_rules
from executor.core import subjects
from executor.core.signature import SecretKey
from executor.errors import ExecutorError

_CONFIG: Final = """\
# Every setting: executor config show. What grants is a [[grant]]; without it nothing is allowed.

[host]
environment = "dev"
name = "local"
key_file = "keys/executor.key"            # signs outcomes
cache_key_file = "keys/cache.key"         # authenticates compiled modules in ./cache
health_file = "health.json"               # rewritten every 5 s: executor health

[nats]
url = "nats://127.0.0.1:4222"

[sandbox]
count = 2

[keys]
operator_file = "keys/operator.key"       # signs what you tell executors

{trust}"""

_SIGNED: Final = """\
[trust]
source = "tuf"                            # what grants stands in policy.toml, and is signed
"""

_POLICY: Final = """\
[[tenant]]
name = "{tenant}"
ceiling = {{ capabilities = ["log", "clock", "random", "kv"] }}

[[grant]]
tenant = "{tenant}"
task = "*"
why = "log lines are bounded and escaped"
log = true

[[publisher]]                             # whose modules run, and for which tasks
name = "author"
key = "{author}"
tasks = ["{tenant}/*"]

[[executor]]                              # whose outcomes are believed
name = "local"
key = "{executor}"

[[operator]]                              # who tells executors what to do
name = "you"
key = "{operator}"

[[binding]]
role = "operator"
who = ["you"]
why = "holds up, ends and repeats tasks"

[[binding]]
role = "releaser"
who = ["you"]
why = "says which module a task's name stands for"

[[binding]]
role = "submitter"
who = ["you"]
why = "schedules tasks"
"""

_TASK: Final = """\
name = "hello"
version = "1.0.0"
source = "hello.c"
summary = "Greets whoever is named in the input"
input = "text/plain"
output = "text/plain"

[[uses]]
capability = "executor:log@1"
reason = "says how long the name was"

[sample]
input = "sample.in"
output = "sample.out"
"""

_SOURCE: Final = """\
#include "executor_task.h"

TASK(in) {
  if (in.len == 0) fail("nobody to greet");
  log_info("greeting %u bytes", (unsigned)in.len);
  outf("Hello, %.*s!\\n", SHOW(in));
  return OK;
}
"""


@click.command("init", cls=Verb)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--tenant", default="acme", show_default=True, help="The first tenant.")
@click.option("--signed", is_flag=True, help="What grants is signed, by keys made here.")
def init(folder: Path, tenant: str, signed: bool) -> None:  # noqa: FBT001
    """Make FOLDER ready: executor.toml, keys, a first task.

    Example: executor init mine
    """
    if not subjects.is_token(tenant):
        raise click.UsageError(f"`{tenant}` is not of [A-Za-z0-9_-]{{1,64}}.")
    target = folder / configs.FILE
    author, host, operator = (SecretKey.generate() for _ in range(3))
    keys, hello = folder / "keys", folder / "hello"
    named = {"author": author, "executor": host, "operator": operator}
    files = [keys / f"{name}.{kind}" for name in named for kind in ("key", "pub")]
    for path in (target, *files):
        if path.exists():
            raise ExecutorError("config.invalid", f"`{path}` exists", hint="name another folder")
    for path in (keys, hello):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from None
    for name, key in named.items():
        write_secret(keys / f"{name}.key", key.pem())
        write_file(keys / f"{name}.pub", f"{key.public.text}\n".encode("ascii"))
    write_secret(keys / "cache.key", f"{secrets.token_hex(32)}\n".encode("ascii"))
    policy = _POLICY.format(
        tenant=tenant, **{name: key.public.text for name, key in named.items()}
    )  # fmt: skip
    write_file(target, _CONFIG.format(trust=_SIGNED if signed else policy).encode())
    if signed:
        _sign(target, policy)
    for name, content in (("task.toml", _TASK), ("hello.c", _SOURCE), ("sample.in", "world"),
                          ("sample.out", "Hello, world!\n")):  # fmt: skip
        if not (hello / name).exists():
            write_file(hello / name, content.encode())
    also = f"{folder / POLICY_FILE}, {folder / 'trust'}/, " if signed else ""
    where = "" if folder == Path() else f"cd {folder} && "
    state().out.data(
        {"schema": "executor.init/1", "folder": str(folder), "tenant": tenant,
         **{name: key.public.text for name, key in named.items()}},
        f"made {target}, {also}{keys}/ and {hello}/\n"
        f"next: {where}executor build hello --key keys/author.key",
    )  # fmt: skip


# Of a signed policy: a login of NATS that may push what was signed.
_SIGNER: Final = """
[[binding]]
role = "policy-signer"
who = ["you"]
why = "pushes what was signed: executor trust push"
"""


def _sign(target: Path, policy: str) -> None:
    """The policy in a file of its own, signed by keys that stay in this folder."""
    head = "# What grants. After a change: executor trust sign policy.toml\n\n"
    text = f"{head}{policy}{_SIGNER}".encode()
    write_file(target.parent / POLICY_FILE, text)
    config = configs.load(target, environ={})
    keys = local_keys(target.parent / config.text("trust.keys_folder"))
    repository = changing(config, new=True)
    repository.make(config.text("host.environment"), single_rules(keys), text)
    repository.sign(list(keys.values()))
    repository.put_in_force(list(keys.values()))
    adopt(config, repository)


VERBS = (init,)
