"""`python -m benchmarks throughput|kills [--tasks N] [--rounds N] [--seed N] [--json]`."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import kills, throughput


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("scenario", choices=["throughput", "kills"])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.scenario == "kills":
        asyncio.run(kills.main(options.tasks, options.seed, as_json=options.json))
    else:
        asyncio.run(throughput.main(options.tasks, options.rounds, as_json=options.json))


_main()
