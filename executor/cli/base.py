"""What every verb shares: the global options, the configuration, inputs, and how it all ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from executor import config as configs
from executor.cli.output import Output
from executor.config import Config
from executor.core import content, subjects
from executor.errors import ExecutorError
from executor.model import PAYLOAD_MAX
from executor.trust import believed

T = TypeVar("T")

CONTENT_TYPES: Final = {
    "text": content.TEXT, "json": content.JSON, "msgpack": content.MSGPACK, "raw": content.RAW,
}  # fmt: skip


@dataclass
class State:
    """The global options of one call."""

    out: Output = field(default_factory=Output)
    config_path: Path | None = None

    def config(self, *, required: bool = False, bootstrap: bool = False) -> Config:
        """The configuration under the policy in force; `bootstrap`: as the file is, no more.

        Errors  `config.*`, `trust.*` where the policy is signed and nothing was verified yet.
        """
        config = configs.load(self.config_path, required=required)
        return config if bootstrap else believed(config)


def state() -> State:
    """The state of the call that runs now."""
    return click.get_current_context().find_root().ensure_object(State)


def _set(apply: Callable[[State, Any], None]) -> Callable[..., None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            apply(context.find_root().ensure_object(State), value)

    return callback


def _set_config(state: State, value: str) -> None:
    state.config_path = Path(value)


def _flag(names: list[str], attribute: str, text: str) -> click.Option:
    return click.Option(
        names, is_flag=True, default=None, expose_value=False, help=text,
        callback=_set(lambda state, value: setattr(state.out, attribute, value)),
    )  # fmt: skip


def _options() -> list[click.Option]:
    """The global options; accepted before and after the verb."""
    return [
        click.Option(["--config"], metavar="FILE", expose_value=False, help="Use this file.",
                     callback=_set(_set_config)),
        _flag(["--json"], "as_json", "Print one JSON object."),
        _flag(["-q", "--quiet"], "quiet", "No talk on stderr."),
        _flag(["-v", "--verbose"], "verbose", "More talk on stderr."),
        click.Option(["--color"], type=click.Choice(["auto", "always", "never"]),
                     expose_value=False, help="Colour on a terminal.",
                     callback=_set(lambda state, value: setattr(state.out, "color", value))),
    ]  # fmt: skip


class Verb(click.Command):
    """A command with the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _options()


class Family(click.Group):
    """A group whose members are verbs or families, listed in the order they were added."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _options()

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Hidden at the top: whoever reads the help knows it, and the verbs need the line."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = ctx.parent is None
        return option

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order of the documentation, not of the alphabet."""
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest a near verb for an unknown one."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            import difflib  # only on this path

            near = difflib.get_close_matches(args[0], list(self.commands), n=1)
            if not near:
                raise
            # From 8.5 on click guesses as well, in other words.
            said = error.format_message().partition(" Did you mean")[0]
            raise click.UsageError(f"{said} Did you mean `{near[0]}`?", error.ctx) from None

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """In one line: a family's screen is for its verbs, whose help explains them."""
        records = (parameter.get_help_record(context) for parameter in self.get_params(context))
        names = [record[0].split(",")[0].split(" [")[0] for record in records if record]
        formatter.write_paragraph()
        formatter.write_text(f"Options: {' · '.join(names)}")
        self.format_commands(context, formatter)


Family.group_class = Family


def run_async(main: Coroutine[Any, Any, T], waits_for: str = "") -> T:
    """Run one coroutine to its end; after a second, say on stderr what it waits for.

    SIGTERM and SIGHUP cancel it as ctrl-C does, so that what it started is put away.
    """

    async def bounded() -> T:
        this = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if this is not None and signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, this.cancel)
        return await (_talking(main, waits_for) if waits_for else main)

    try:
        return asyncio.run(bounded())
    except asyncio.CancelledError:
        raise click.Abort from None


async def _talking(main: Coroutine[Any, Any, T], waits_for: str) -> T:
    out, begin = state().out, time.monotonic()
    work = asyncio.ensure_future(main)
    live = sys.stderr.isatty() and not out.quiet and not out.as_json
    said = False
    try:
        while not (await asyncio.wait({work}, timeout=1.0))[0]:
            passed = f"{time.monotonic() - begin:.0f} s"
            if live:
                click.echo(f"\rwaiting for {waits_for} … {passed}", nl=False, err=True)
            elif not said:
                out.say(f"waiting for {waits_for} …")
            said = True
        return work.result()
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
        if said and live:
            click.echo("\r\x1b[K", nl=False, err=True)
        elif said:
            out.say(f"waited {time.monotonic() - begin:.1f} s for {waits_for}")


def read_input(text: str | None, kind: str) -> tuple[bytes, str]:
    """(bytes, content type) of `-i`: TEXT, @FILE or - for stdin; JSON becomes msgpack if asked.

    Errors  `config.missing` for a file that is not there, `message.*`.
    """
    content_type = CONTENT_TYPES[kind]
    if text is None:
        return b"", content_type
    if text == "-":
        data = sys.stdin.buffer.read(PAYLOAD_MAX + 1)
    elif text.startswith("@"):
        data = read_file(Path(text[1:]), most=PAYLOAD_MAX + 1)
    else:
        data = text.encode("utf-8", "surrogateescape")
    if kind in {"json", "msgpack"}:
        try:
            value = json.loads(data)
            if kind == "msgpack":
                data = content.to_msgpack(value)
        except (ValueError, OverflowError, RecursionError) as error:
            why = "too deep" if isinstance(error, RecursionError) else str(error)
            what = "msgpack" if isinstance(error, OverflowError) else "JSON"
            raise ExecutorError(
                "message.malformed", f"the input is not {what}: {why}",
                hint="quote it for the shell, or use --type text",
            ) from None  # fmt: skip
    if len(data) > PAYLOAD_MAX:
        raise ExecutorError("message.too-large", f"the input is above {PAYLOAD_MAX} bytes")
    return data, content_type


def read_file(path: Path, *, most: int = 64 * 1024 * 1024) -> bytes:
    """A user's file, bounded. Errors  `config.missing`."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ExecutorError(
            "config.missing", f"`{path}`: {(error.strerror or 'unreadable').lower()}",
            hint="check the path",
        ) from None  # fmt: skip


def write_file(path: Path, data: bytes) -> None:
    """Write a user's file whole. Errors  `config.invalid`."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> ExecutorError:
    """What the file system says of a path that was to be written."""
    return ExecutorError(
        "config.invalid", f"`{path}`: {(error.strerror or 'unwritable').lower()}",
        hint="check the path and who may write there",
    )  # fmt: skip


def split_task(name: str, config: Config, tenant: str | None = None) -> tuple[str, str]:
    """(tenant, task) of `TENANT/TASK`, or of `TASK` where one tenant is configured."""
    of_tenant, slash, task = name.rpartition("/")
    if not slash:
        of_tenant = pick_tenant(config, tenant)
    for token in (of_tenant, task):
        if not subjects.is_token(token):
            raise click.UsageError(f"`{name}` is not TENANT/TASK, each of [A-Za-z0-9_-]{{1,64}}.")
    return of_tenant, task


def pick_tenant(config: Config, tenant: str | None) -> str:
    """The tenant that was named, or the only one there is."""
    names = [party.name for party in config.policy.tenants]
    if tenant is not None:
        return tenant
    if len(names) == 1:
        return names[0]
    known = f" Configured: {', '.join(names)}." if names else " None is configured."
    raise click.UsageError(f"Which tenant? Use --tenant NAME.{known}")


input_options = (
    click.option("-i", "--input", "text", metavar="TEXT|@FILE|-", help="The input."),
    click.option("--type", "kind", type=click.Choice(list(CONTENT_TYPES)), default="text",
                 show_default=True, help="What the input is; msgpack is written as JSON."),
)  # fmt: skip


def with_input(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-i` and `--type` to a verb."""
    for option in reversed(input_options):
        function = option(function)
    return function
