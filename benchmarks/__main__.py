"""`python -m benchmarks [SCENARIO …]`: run scenarios, print the report, and write it into a folder.

Without names all usual scenarios run, about a quarter of an hour; `--quick` is for a look at
whether everything works, in three minutes. The README beside this file says what each one is for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from benchmarks import facts, figures, report
from benchmarks.catalog import SCENARIOS
from benchmarks.comparing import deltas
from benchmarks.contenders import PEERS
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.section import Section


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(
        f"  {name:<12} {scenario.about}{'' if scenario.usual else '; only when named'}"
        for name, scenario in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"scenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument("--quick", action="store_true", help="one small round of each")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=0, help="where a scenario counts tasks")
    parser.add_argument("--seconds", type=float, default=0.0, help="where it takes time")
    parser.add_argument("--minutes", type=float, default=0.0, help="of soak")
    parser.add_argument("--seed", type=int, default=1, help="of what is killed when")
    parser.add_argument("--peers", help=f"none, or some of: {', '.join(p.name for p in PEERS)}, "
                        "Extism; separated by commas")  # fmt: skip
    parser.add_argument(
        "--compare",
        default="",
        metavar="REV",
        help="a revision as one more contender, where a scenario has contenders",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/benchmarks"),
        help="the folder of report.md, report.html and samples.jsonl",
    )
    parser.add_argument(
        "--keep-figures",
        action="store_true",
        help="let `executor bench plan` reckon with what this run saw",
    )
    parser.add_argument("--json", action="store_true", help="print the samples, not the report")
    return parser


def _options(given: argparse.Namespace) -> Options:
    peers = None
    if given.peers is not None:
        peers = tuple(name.strip() for name in given.peers.split(",") if name.strip() != "none")
        unknown = set(peers) - {p.name for p in PEERS} - {"Extism"}
        if unknown:
            raise SystemExit(f"no peer is called {', '.join(sorted(unknown))}")
    return Options(
        quick=given.quick, rounds=given.rounds, tasks=given.tasks, seconds=given.seconds,
        minutes=given.minutes, seed=given.seed, peers=peers, compare=given.compare,
    )  # fmt: skip


async def run(names: list[str], options: Options) -> list[Section]:
    """The sections of these scenarios, and of what they compared."""
    sections: list[Section] = []
    for name in names:
        note(name)
        sections += await SCENARIOS[name].run(options)
    delta = deltas(sections, options.compare) if options.compare else None
    return [delta, *sections] if delta is not None else sections


def main(arguments: list[str]) -> None:
    """Parse, run, write."""
    given = _parser().parse_args(arguments)
    if unknown := [name for name in given.scenarios if name not in SCENARIOS]:
        raise SystemExit(f"no scenario is called {unknown[0]}; there are {', '.join(SCENARIOS)}")
    options = _options(given)
    names = given.scenarios or [n for n, scenario in SCENARIOS.items() if scenario.usual]
    if options.compare and not any(SCENARIOS[name].compares for name in names):
        able = ", ".join(n for n, scenario in SCENARIOS.items() if scenario.compares)
        raise SystemExit(f"--compare is of {able}: the others have no contender to add")
    machine = facts.gather()
    sections = asyncio.run(run(names, options))
    report.write(given.out, machine, sections)
    if seen := figures.seen(machine, sections):
        figures.write(given.out / figures.FILE.name, seen)
        if given.keep_figures:
            figures.write(figures.FILE, seen)
    elif given.keep_figures:
        note("figures are kept from a run of throughput and memory together")
    if given.json:
        for section in sections:
            for line in section.lines():
                print(json.dumps(line))
    else:
        print(report.markdown(machine, sections))
    note(f"wrote {given.out}/report.html, report.md and samples.jsonl")


if __name__ == "__main__":
    main(sys.argv[1:])
