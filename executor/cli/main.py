"""The command `executor`: every verb, and how every call ends.

A user's mistake is one message with a hint and a documented exit status, never a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from executor import __version__
from executor.cli import (
    admin,
    bench,
    breaking,
    building,
    dead,
    demo,
    fleet,
    grants,
    modules,
    operate,
    output,
    policy,
    running,
    scanning,
    schedule,
    sessions,
    starting,
    trust,
    understanding,
)
from executor.cli.base import Family, State, Verb, state, unwritable
from executor.errors import TABLE, ExecutorError

_INTERRUPTED: Final = 130
_USAGE: Final = 2


@click.group(
    "executor", cls=Family, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
@click.version_option(__version__, prog_name="executor")
def cli() -> None:
    """Run WebAssembly tasks you do not have to trust. Start with: executor demo."""


# Not listed, as `--help` is not: who reads that page has found one of them, and it is full.
@click.command("help", cls=Verb, hidden=True)
@click.argument("words", metavar="[TOPIC | VERB…]", nargs=-1)
@click.pass_context
def topic_help(context: click.Context, words: tuple[str, ...]) -> None:
    """Explain a topic, exit-codes or environment, or a verb.

    Example: executor help exit-codes
    """
    out = state().out
    topic = " ".join(words)
    if topic in _TOPICS:
        header, rows = _TOPICS[topic]()
        names = [name.lower() for name in header]
        out.data(
            {"schema": "executor.help/1", "topic": topic,
             "rows": [dict(zip(names, row, strict=True)) for row in rows]},
            output.table(header, rows),
        )  # fmt: skip
        return
    root = context.find_root()
    command: click.Command = cli
    for word in words:
        if not isinstance(command, Family) or word not in command.commands:
            known = [*_TOPICS, *cli.commands]
            raise click.UsageError(f"There is no help on `{topic}`.{_near(words[0], known)}")
        command = command.commands[word]
        root = click.Context(command, info_name=word, parent=root)
    text = command.get_help(root)
    out.data({"schema": "executor.help/1", "topic": topic, "text": text}, text)


def _near(word: str, known: list[str]) -> str:
    import difflib  # only on this path

    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def _exit_codes() -> tuple[tuple[str, str], list[tuple[str, str]]]:
    stages: dict[int, set[str]] = {}
    for row in TABLE.values():
        stages.setdefault(row.exit, set()).add(f"{row.stage}.*")
    rows = [("0", "done"), (str(_USAGE), "the command line is wrong")]
    rows += [(str(e), ", ".join(sorted(s))) for e, s in sorted(stages.items())]
    return ("EXIT", "MEANS"), [*rows, (str(_INTERRUPTED), "interrupted")]


def _environment() -> tuple[tuple[str, str], list[tuple[str, str]]]:
    return ("VARIABLE", "MEANS"), [
        ("EXECUTOR_<SECTION>_<KEY>", "a setting of executor.toml: executor config show"),
        ("EXECUTOR_PASSPHRASE", "of an encrypted key, for sign and build"),
        ("NO_COLOR", "no colour"),
        ("OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER", "console or otlp; none by default"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "where otlp sends"),
    ]


_TOPICS: Final = {"exit-codes": _exit_codes, "environment": _environment}

for _verb in (
    *demo.VERBS, *starting.VERBS, *running.VERBS, *building.VERBS, *modules.VERBS,
    *scanning.VERBS, *operate.VERBS, *schedule.VERBS, *dead.VERBS, *fleet.VERBS, *admin.VERBS,
    *bench.VERBS, *trust.VERBS, *grants.VERBS, *policy.VERBS, *sessions.VERBS, *breaking.VERBS,
    *understanding.VERBS,
    topic_help,
):  # fmt: skip
    cli.add_command(_verb)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal without UTF-8 gets escapes, not a traceback
            reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that folders and processes are put away


def _run(arguments: list[str]) -> int:
    shared = State()
    try:
        code = _call(arguments, shared)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left: nothing more to say, not even when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _call(arguments: list[str], shared: State) -> int:
    stdout = sys.stdout
    try:
        ended = cli.main(arguments, prog_name="executor", standalone_mode=False, obj=shared)
        return ended if isinstance(ended, int) else 0
    except SystemExit:
        if sys.stdout is not stdout:  # click's own answer to a reader that left
            return 0
        raise
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _USAGE
    except click.ClickException as error:
        # What stands before the mistake was read; `--json` may stand behind it.
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        shared.out.as_json |= "--json" in options
        _usage(error, shared)
        return _USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except ExecutorError as error:
        shared.out.error(error)
        return error.row.exit
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            shared.out.bug(error)
            return TABLE["internal.bug"].exit
        # A path of the user's that no verb expected to fail.
        shared.out.error(unwritable(Path(os.fsdecode(error.filename)), error))
        return TABLE["config.invalid"].exit
    except Exception as error:  # noqa: BLE001 - the last seam: a bug is a message too
        shared.out.bug(error)
        return TABLE["internal.bug"].exit


def _usage(error: click.ClickException, shared: State) -> None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "executor"
    message = " ".join(error.format_message().split()).rstrip(".")
    usage = context.get_usage().removeprefix("Usage: ") if context else ""
    shared.out.usage(message, " ".join(usage.split()), f"{path} --help", _USAGE)


if __name__ == "__main__":
    main()
