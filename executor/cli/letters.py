"""Dead letters by id or by filter, and what is done to many of them: chosen, said, asked, done.

Everything is checked before anything is touched. What is chosen is remembered by its place in the
stream, not by its bytes, and read again when its turn comes: a letter that changed meanwhile is
left alone and reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import difflib
import functools
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from executor.cli import output
from executor.cli.base import run_async, state
from executor.cli.operate import duration_ms
from executor.client import Client, TaskOutcome
from executor.core import subjects
from executor.errors import TABLE, ExecutorError

LIST_MAX: Final = 1_000
_MOST: Final = 1_000_000
# How many are under way at once: a round trip or three each, which a distant server makes long.
_AT_ONCE: Final = 16
# From here on a batch shows its progress.
_LONG: Final = 25
_SAMPLE: Final = 3
_SHOWN_FAILURES: Final = 10
_DIGEST: Final = re.compile(r"[0-9a-f]{4,64}")

Line = tuple[dict[str, Any], str]  # what was done to one letter: for programs, for people


@dataclass(frozen=True, slots=True)
class Chosen:
    """A letter to act on, as it was when it was chosen."""

    task: str
    id: str
    sequence: int
    code: str
    stored_at: int  # ms


@dataclass(frozen=True, slots=True)
class Filters:
    """Which letters: every condition that is given must hold."""

    task: str = "*"
    code: str = ""
    since: int = 0  # ms; when it was stored
    until: int = 0
    digest: str = ""  # the beginning of its hex digits
    signer: str = ""
    limit: int = LIST_MAX

    @property
    def given(self) -> bool:
        """Whether any condition is."""
        return self != Filters(limit=self.limit)

    def match(self, letter: TaskOutcome) -> bool:
        """Whether a letter is meant; its task was asked for already."""
        code, record = letter.code, letter.record
        return (
            (not self.code or code == self.code or code.startswith(f"{self.code}."))
            and letter.stored_at >= self.since
            and (not self.until or letter.stored_at <= self.until)
            and record.receipt.digest.removeprefix("sha256:").startswith(self.digest)
            and (not self.signer or self.signer in record.signers)
        )


class When(click.ParamType[int]):
    """A time in ms: ISO 8601, UTC unless it says otherwise, or a duration ago such as `2h`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The time. Raises `click.BadParameter`."""
        del param, ctx
        if isinstance(value, int):
            return value  # the default
        with contextlib.suppress(ValueError, OverflowError):
            found = dt.datetime.fromisoformat(str(value))
            if found.tzinfo is None:
                found = found.replace(tzinfo=dt.UTC)
            return max(int(found.timestamp() * 1000), 0)
        try:
            return output.now_ms() - duration_ms(str(value))
        except click.BadParameter:
            raise click.BadParameter(
                f"`{value}` is no time: write 2h (ago), 3d, or 2030-01-31T12:00:00Z."
            ) from None


_OPTIONS: Final = (
    click.option("--tenant", help="Whose tasks."),
    click.option("--task", default="*", help="Only this task."),
    click.option("--code", default="", help="Only this code, or a stage such as `limit`."),
    click.option("--since", type=When(), default=0, metavar="TIME",
                 help="Ended after TIME: 2h (ago), 2030-01-31."),
    click.option("--until", type=When(), default=0, metavar="TIME",
                 help="Ended before TIME; 7d: older than a week."),
    click.option("--digest", default="", help="Only of this module, by its first digits."),
    click.option("--signer", default="", help="Only of modules that this publisher signed."),
    click.option("--limit", type=click.IntRange(1, _MOST), default=LIST_MAX, show_default=True,
                 help="At most so many, the oldest."),
)  # fmt: skip


def with_filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters; the verb gets `filters` in place of them."""

    @functools.wraps(function)
    def verb(
        task: str, code: str, since: int, until: int, digest: str, signer: str, limit: int,
        **rest: Any,
    ) -> Any:  # fmt: skip
        digits = digest.removeprefix("sha256:")
        _check(task, code, digits)
        return function(filters=Filters(task, code, since, until, digits, signer, limit), **rest)

    decorated: Callable[..., Any] = verb
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _check(task: str, code: str, digest: str) -> None:
    stages = {row.stage for row in TABLE.values()}
    if code and code not in TABLE and code not in stages:
        near = difflib.get_close_matches(code, [*TABLE, *stages], n=1)
        also = f" Did you mean `{near[0]}`?" if near else " `executor explain` lists all."
        raise click.UsageError(f"There is no code `{code}`.{also}")
    if task != "*" and not subjects.is_token(task):
        raise click.UsageError(f"`{task}` is no task's name.")
    if digest and not _DIGEST.fullmatch(digest):
        raise click.UsageError(f"`{digest}` is not 4 to 64 hex digits of a digest.")


def ids_or_all(ids: Sequence[str], filters: Filters, *, every: bool) -> None:
    """Letters are named by their ids, or by --all and filters. Raises `click.UsageError`."""
    if bool(ids) is every:
        raise click.UsageError("Which ones? Give their ids, or --all with filters such as --code.")
    if ids and filters.given:
        raise click.UsageError("Filters go with --all, not with ids.")


async def matching(client: Client, filters: Filters) -> AsyncGenerator[TaskOutcome, None]:
    """The letters that are meant and that nobody has discarded, oldest first."""
    count = 0
    async for letter in client.dead_letters(filters.task):
        if not filters.match(letter):
            continue
        if count == filters.limit:
            state().out.warn(f"only the first {count} are taken: --limit takes more")
            return
        count += 1
        yield letter


async def letter_of(client: Client, task_id: str) -> TaskOutcome:
    """The dead letter of an id, discarded or not. Errors  `transport.outcome-pending`."""
    found = await client.outcome(task_id)
    if found is None:
        raise ExecutorError("transport.outcome-pending", f"`{task_id}`",
                            hint="executor dead list shows the dead letters")  # fmt: skip
    if found.ok:
        raise click.UsageError(f"`{task_id}` is no dead letter: it has a result")
    return found


async def open_letter(client: Client, task_id: str) -> TaskOutcome:
    """The same, which nobody has closed."""
    letter = await letter_of(client, task_id)
    if letter.record.discarded_at:
        at = output.timestamp(letter.record.discarded_at)
        raise click.UsageError(
            f"`{task_id}` was discarded at {at} and is closed; `executor dead export {task_id}` "
            "has its bytes, to be submitted as a new task."
        )
    return letter


async def choose(
    client: Client, ids: Sequence[str], filters: Filters, check: Callable[[TaskOutcome], object]
) -> list[Chosen]:
    """The letters to act on, all of them checked.

    Of `ids` each must pass: nothing is done to any if one does not; without the right to read them
    the executor judges. What matches a filter and does not pass is left out, which is said.
    """
    if ids:
        try:
            letters = [await open_letter(client, task_id) for task_id in dict.fromkeys(ids)]
        except ExecutorError as error:
            if error.code != "transport.permission-denied":
                raise
            return [Chosen(subjects.ANY_TASK, task_id, 0, "", 0) for task_id in ids]
        for letter in letters:
            check(letter)
        return [_chosen(letter) for letter in letters]
    found: list[Chosen] = []
    left_out: list[tuple[str, str]] = []
    async for letter in matching(client, filters):
        try:
            check(letter)
        except ExecutorError as error:
            left_out.append((letter.id, error.code))
        else:
            found.append(_chosen(letter))
    if left_out:
        named = ", ".join(f"{task_id} ({code})" for task_id, code in left_out[:_SAMPLE])
        more = " …" if len(left_out) > _SAMPLE else ""
        state().out.warn(f"{output.count(len(left_out), 'letter')} left out: {named}{more}")
    return found


def _chosen(letter: TaskOutcome) -> Chosen:
    return Chosen(letter.task, letter.id, letter.sequence, letter.code, letter.stored_at)


def confirm(chosen: Sequence[Chosen], what: str, *, yes: bool) -> None:
    """Say what will be done to how many, with a sample, and ask. Raises `click.UsageError`."""
    out, now = state().out, output.now_ms()
    out.say(f"{output.count(len(chosen), 'dead letter')} to {what}:")
    for one in chosen[:_SAMPLE]:
        out.say(f"  {one.id}  {one.task}  {one.code}  {output.age(one.stored_at, now)} ago")
    if len(chosen) > _SAMPLE:
        out.say(f"  … and {output.number(len(chosen) - _SAMPLE)} more")
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("Off a terminal, confirm with --yes.")
    click.confirm("Go on?", abort=True, err=True)


async def each(
    chosen: Sequence[Chosen], act: Callable[[Chosen], Awaitable[Line]], *, what: str
) -> None:
    """Do it to each, some at a time, and go on after single failures.

    Stops when a whole round failed: then it is not the letters. Errors  the first failure, with
    the counts, when all that can be done is done.
    """
    done, failed = 0, list[tuple[Chosen, ExecutorError]]()
    lines: list[Line] = []
    # A bar and the lines of what is done would write over each other on one terminal.
    held = _has_bar(len(chosen)) and sys.stdout.isatty()
    with _progress(len(chosen), what) as tick:
        for start in range(0, len(chosen), _AT_ONCE):
            batch = chosen[start : start + _AT_ONCE]
            answers = await asyncio.gather(*map(act, batch), return_exceptions=True)
            bad = 0
            for one, answer in zip(batch, answers, strict=True):
                if isinstance(answer, ExecutorError):
                    failed.append((one, answer))
                    bad += 1
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    done += 1
                    lines.append(answer)
            if not held:
                _print(lines)
            tick(len(batch))
            if bad == len(batch) == _AT_ONCE:
                break
    _print(lines)
    if failed:
        _report(failed, done, len(chosen))


def _print(lines: list[Line]) -> None:
    for line in lines:
        state().out.data(*line)
    lines.clear()


def _report(failed: Sequence[tuple[Chosen, ExecutorError]], done: int, count: int) -> None:
    out = state().out
    for number, (one, error) in enumerate(failed):
        if out.as_json:
            out.data({"schema": "executor.failed/1", "id": one.id, "task": one.task,
                      "sequence": one.sequence, "code": error.code, "message": error.message},
                     "")  # fmt: skip
        elif number < _SHOWN_FAILURES:
            out.say(f"failed  {one.id}  {one.task}  {error.code}: {error.message}")
    first = failed[0][1]
    untried = count - done - len(failed)
    raise ExecutorError(
        first.code, f"{len(failed)} of {count} dead letters failed; the first: {first.detail}",
        hint=first.hint, done=done, failed=len(failed), not_tried=untried,
    )  # fmt: skip


def _has_bar(count: int) -> bool:
    out = state().out
    return count >= _LONG and sys.stderr.isatty() and not out.quiet and not out.as_json


@contextlib.contextmanager
def _progress(count: int, what: str) -> Iterator[Callable[[int], None]]:
    """How far a long batch is: a bar on a terminal, else a line at its start and at its end."""
    out = state().out
    if _has_bar(count):
        with click.progressbar(length=count, label=what, file=sys.stderr) as bar:
            yield bar.update
        return
    if count >= _LONG:
        out.say(f"{what}: {output.number(count)} …")
    yield lambda _step: None
    if count >= _LONG:
        out.say(f"{what}: through")


def run_batch(main: Coroutine[Any, Any, None], count: int) -> None:
    """Run the acting part; what shows its own progress needs no word about waiting."""
    run_async(main, "NATS" if count < _LONG else "")
