"""`python -m benchmarks SCENARIO [--tasks N] [--rounds N] [--minutes N] [--seed N] [--json]`.

`--rounds` is of throughput and backlog (3) and containment (5), `--minutes` of soak; `--skip-large`
spares containment the module of 10 MB, whose compilation takes the longest.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import backlog, containment, kills, soak, throughput

_ROUNDS = {"throughput": 3, "containment": 5, "backlog": 3}
_TASKS = {"backlog": 200_000, "soak": 100_000}


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "scenario", choices=["throughput", "kills", "containment", "backlog", "soak"]
    )
    parser.add_argument("--tasks", type=int, help="20000; backlog 200000, soak 100000")
    parser.add_argument("--rounds", type=int, help="3 of throughput and backlog, 5 of containment")
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip-large", action="store_true", help="containment without 10 MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or _ROUNDS.get(options.scenario, 0)
    tasks = options.tasks or _TASKS.get(options.scenario, 20_000)
    if options.scenario == "kills":
        asyncio.run(kills.main(tasks, options.seed, as_json=options.json))
    elif options.scenario == "containment":
        asyncio.run(containment.main(rounds, as_json=options.json, large=not options.skip_large))
    elif options.scenario == "backlog":
        asyncio.run(backlog.main(tasks, rounds, as_json=options.json))
    elif options.scenario == "soak":
        soak.main(tasks, options.minutes, options.seed, as_json=options.json)
    else:
        asyncio.run(throughput.main(tasks, rounds, as_json=options.json))


_main()
