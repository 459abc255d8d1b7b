"""`executor serve` with kill points: `armed.py serve PAGE POINT ARGUMENTS…`.

Arms one point of the supervisor (or none, ``-``) and runs the command with the arguments. The
fork server that it starts is this file too, as `armed.py zygote PAGE …`: with every point of the
jailed processes in place, of which the page says which one is armed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # a fork server is started in isolated mode

from tests.support import killpoints


def _serve(page: str, point: str, arguments: list[str]) -> None:
    from executor.cli import main  # not in the fork server
    from executor.supervisor import guards, pool, zygote

    # The deaths are the test's: they say nothing about a module, nor about a task that lay in one
    # sandbox after the other in which another was the victim.
    setattr(guards, "_BREAKS", frozenset())  # noqa: B010
    setattr(guards, "_DAMNING", frozenset())  # noqa: B010
    setattr(pool, "_STRANDED_MAX", 1_000)  # noqa: B010

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        own = [*command[:2], __file__, "zygote", page, *command[5:]]
        assert command[1:5] == ["-I", "-m", "executor.sandbox", "zygote"]
        return subprocess.Popen(own, **options)

    setattr(zygote, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))  # noqa: B010
    if point != "-":
        killpoints.arm(killpoints.find(point))
    main.main(arguments)


def _zygote(page: str, arguments: list[str]) -> None:
    from executor.sandbox import main

    killpoints.Jail(killpoints.Page(Path(page))).arm()
    main.main(["zygote", *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        _zygote(sys.argv[2], sys.argv[3:])
