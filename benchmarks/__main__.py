"""`python -m benchmarks SCENARIO [--tasks N] [--rounds N] [--minutes N] [--seed N] [--json]`.

`--minutes` is of soak, `--skip-large` spares containment the module of 10 MB, whose compilation
takes the longest. The README beside this file says what each scenario is for.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import authentic, backlog, containment, fairness, kills, soak, throughput

_ROUNDS = {"throughput": 3, "containment": 5, "backlog": 3, "fairness": 5, "authentic": 3}
_TASKS = {"throughput": 20_000, "kills": 20_000, "backlog": 200_000, "soak": 100_000,
          "fairness": 400, "containment": 0, "authentic": 10_000}  # fmt: skip


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("scenario", choices=sorted(_TASKS))
    parser.add_argument("--tasks", type=int, help=f"as many as usual: {_TASKS}")
    parser.add_argument("--rounds", type=int, help=f"as many as usual: {_ROUNDS}")
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip-large", action="store_true", help="containment without 10 MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or _ROUNDS.get(options.scenario, 0)
    tasks, as_json = options.tasks or _TASKS[options.scenario], options.json
    match options.scenario:
        case "kills":
            asyncio.run(kills.main(tasks, options.seed, as_json=as_json))
        case "containment":
            asyncio.run(containment.main(rounds, as_json=as_json, large=not options.skip_large))
        case "backlog":
            asyncio.run(backlog.main(tasks, rounds, as_json=as_json))
        case "fairness":
            asyncio.run(fairness.main(tasks, rounds, as_json=as_json))
        case "authentic":
            asyncio.run(authentic.main(tasks, rounds, as_json=as_json))
        case "soak":
            soak.main(tasks, options.minutes, options.seed, as_json=as_json)
        case _:
            asyncio.run(throughput.main(tasks, rounds, as_json=as_json))


_main()
