"""`python -m benchmarks throughput|kills|containment [--tasks N] [--rounds N] [--seed N] [--json]`.

`--rounds` is of throughput (3) and containment (5); `--skip-large` spares containment the module of
10 MB, whose compilation takes the longest.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import containment, kills, throughput

_ROUNDS = {"throughput": 3, "containment": 5}


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("scenario", choices=["throughput", "kills", "containment"])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, help="3 of throughput, 5 of containment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip-large", action="store_true", help="containment without 10 MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or _ROUNDS.get(options.scenario, 0)
    if options.scenario == "kills":
        asyncio.run(kills.main(options.tasks, options.seed, as_json=options.json))
    elif options.scenario == "containment":
        asyncio.run(containment.main(rounds, as_json=options.json, large=not options.skip_large))
    else:
        asyncio.run(throughput.main(options.tasks, rounds, as_json=options.json))


_main()
