"""`python -m tests.sim --runs 50000 --seed 1`: many histories; `--tell SEED`: one, by line."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim import planted
from tests.sim.history import Report, live, retold


def command(seed: int) -> str:
    """What repeats a history and prints it."""
    return f"python -m tests.sim --tell {seed}"


def describe(report: Report) -> str:
    """A failure: the promise, the seed, the command, the trace up to the first violation and on."""
    trace = report.trace or retold(report.seed).trace
    first = next((n for n, line in enumerate(trace) if "VIOLATION" in line), len(trace))
    shown = trace[max(0, first - 120) : first + 10]
    return "\n".join((
        f"seed {report.seed}: {report.violations[0]}", f"repeat it: {command(report.seed)}", *shown
    ))  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="how many histories")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first one")
    parser.add_argument("--tell", type=int, metavar="SEED", help="print one history")
    parser.add_argument("--planted", action="store_true", help="plant each bug and look for it")
    return parser.parse_args()


def _plants(runs: int, seed: int) -> int:
    missed = 0
    for name in planted.PLANTS:
        count, report = planted.hunt(name, runs, seed)
        missed += report is None
        told = f"after {count}: {report.violations[0]}" if report else f"not within {runs}"
        sys.stdout.write(f"{name:<32} {told}\n")
    return missed


def _many(runs: int, seed: int) -> int:
    began = told = time.monotonic()
    totals: dict[str, int] = {}
    broken = 0
    for count in range(1, runs + 1):
        report = live(seed + count - 1)
        for name, value in report.facts.items():
            totals[name] = totals.get(name, 0) + value
        if report.violations:
            broken += 1
            sys.stdout.write(describe(report) + "\n\n")
        if time.monotonic() - told > 5 or count == runs:
            told = time.monotonic()
            rate, own = count / (told - began), count / time.process_time()
            sys.stdout.write(
                f"{count} histories, {rate:.0f}/s, {own:.0f} per CPU second, {broken} broken\n"
            )
            sys.stdout.flush()
    for name, value in sorted(totals.items()):
        sys.stdout.write(f"  {name:<24} {value}\n")
    return broken


def main() -> int:
    """Exit 1 where a promise was broken."""
    asked = _parse()
    if asked.tell is not None:
        report = retold(asked.tell)
        sys.stdout.write("\n".join(report.trace) + "\n")
        return bool(report.violations)
    if asked.planted:
        return bool(_plants(asked.runs, asked.seed))
    return bool(_many(asked.runs, asked.seed))


if __name__ == "__main__":
    sys.exit(main())
