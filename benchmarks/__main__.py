"""`python -m benchmarks SCENARIO [--tasks N] [--rounds N] [--seed N] [--json]`.

Scenarios: throughput, kills, containment, fairness. `--rounds` is of throughput (3), containment
(5) and fairness (5); `--skip-large` spares containment the module of 10 MB, whose compilation takes
the longest.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import containment, fairness, kills, throughput

_ROUNDS = {"throughput": 3, "containment": 5, "fairness": 5}


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("scenario", choices=["throughput", "kills", "containment", "fairness"])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, help="of throughput, containment, fairness")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip-large", action="store_true", help="containment without 10 MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or _ROUNDS.get(options.scenario, 0)
    if options.scenario == "kills":
        asyncio.run(kills.main(options.tasks, options.seed, as_json=options.json))
    elif options.scenario == "containment":
        asyncio.run(containment.main(rounds, as_json=options.json, large=not options.skip_large))
    elif options.scenario == "fairness":
        asyncio.run(fairness.main(min(options.tasks, 400), rounds, as_json=options.json))
    else:
        asyncio.run(throughput.main(options.tasks, rounds, as_json=options.json))


_main()
