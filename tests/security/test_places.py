"""One jail in many places: as root, as nobody, in containers of several kinds.

A place differs in what it allows the jail to put on, never in how an attack ends.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from executor.core import layers
from executor.sandbox import attacks

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65_534
WAIT_SECONDS: Final = 90
PLACES: Final[dict[str, tuple[str, ...]]] = {
    "as-is": (),
    # One right of root's is left, to read the interpreter wherever it lies; the zygote drops it.
    "unprivileged": (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    ),
    "bubblewrap": (
        "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-user-try",
        "--unshare-pid", "--die-with-parent",
    ),
    "user-namespace": (
        "unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc",
    ),
}  # fmt: skip
PACKAGES: Final = {"setpriv": "util-linux", "unshare": "util-linux", "bwrap": "bubblewrap"}
# Of each kind one: a file, the network, a process, code, the parent.
TRIED: Final = ("open", "socket-inet", "fork", "execute-later", "signal-parent")

_SCRIPT: Final = """
import json, os, socket, sys
from executor.core.frames import Load, Reader, Ready, encode
from tests.support.nursery import Nursery

nursery = Nursery()
ours, theirs = socket.socketpair()
page = os.memfd_create("status")
os.ftruncate(page, 4096)
born = nursery.fork("sandbox", [theirs.fileno(), page])
theirs.close()
ours.sendall(encode(Load(())))
(frame,) = Reader().feed(ours.recv(4096))
assert isinstance(frame, Ready), frame
with open(f"/proc/{born.pid}/status") as lines:
    status = {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}
ours.close()
left = born.wait()
ended = {name: nursery.attack(name) for name in sys.argv[1:]}
nursery.close()
print(json.dumps({
    "user": os.geteuid(), "layers": frame.layers, "inherited": nursery.warm.layers, "left": left,
    "seccomp": status["Seccomp"], "effective": status["CapEff"], "no_new_privs":
    status["NoNewPrivs"], "ended": ended,
}))
"""


def _start(place: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PLACES[place], *command], cwd=ROOT, env={"PATH": os.environ.get("PATH", os.defpath)},
        capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _reason(place: str) -> str:
    """Why this place cannot be had here, empty when it can."""
    if not PLACES[place]:
        return ""
    tool = PLACES[place][0]
    if shutil.which(tool) is None:
        return f"{tool} is not installed: apt-get install {PACKAGES[tool]}"
    if tool == "setpriv" and os.geteuid() != 0:
        return "only root can become another user; as it is, this is one already"
    probe = _start(place, "true")
    if probe.returncode != 0:
        return f"{tool} is not permitted here: {probe.stderr.strip()[:200]}"
    # An interpreter in somebody's home, or a checkout there, is not everybody's to read.
    probe = _start(place, sys.executable, "-B", "-c", "import tests.support.nursery, wasmtime")
    if probe.returncode != 0:
        return f"the interpreter or the checkout cannot be read there ({place})"
    return ""


@functools.cache
def report(place: str) -> dict[str, Any]:
    """What one process of a fork server there said; skips where the place cannot be had."""
    reason = _reason(place)
    if reason:
        pytest.skip(reason)
    done = _start(place, sys.executable, "-B", "-c", _SCRIPT, *TRIED, "nothing")
    assert done.returncode == 0, done.stderr[-4000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


everywhere = pytest.mark.parametrize("place", PLACES)


@everywhere
def test_every_attack_is_killed(place: str) -> None:
    """A file, the network, a process, code, the parent: none is to be had in any place."""
    said = report(place)
    killed = dict.fromkeys(TRIED, -signal.SIGSYS)
    assert said["ended"] == {**killed, "nothing": attacks.EXIT_PASSED}


@everywhere
def test_every_required_layer_is_on(place: str) -> None:
    """A sandbox there is locked by all that must be, and the kernel says the same."""
    said = report(place)
    assert set(said["layers"]) >= layers.REQUIRED
    assert set(said["layers"]) | set(said["inherited"]) <= set(layers.LAYERS)
    assert len(set(said["layers"])) == len(said["layers"])
    assert (said["seccomp"], said["no_new_privs"]) == ("2", "1")
    assert int(said["effective"], 16) == 0
    assert said["left"] == 0  # it ends well when its socket closes


@everywhere
def test_what_a_place_takes_away_is_said(place: str) -> None:
    """A sandbox is never root in silence: where no other user is mapped, the layer is missing."""
    said = report(place)
    if place == "as-is":
        assert said["user"] == os.geteuid()
    alone = place in {"bubblewrap", "user-namespace"} and os.geteuid() == 0
    if place == "unprivileged":
        assert said["user"] == NOBODY
    if alone:
        assert said["user"] == 0
    assert (layers.USER in said["layers"]) is not (alone or _mapped_alone(said))


def _mapped_alone(said: dict[str, Any]) -> bool:
    """Whether it is root of a namespace that has no other user, as this one may be."""
    ranges = Path("/proc/self/uid_map").read_text().split()
    return said["user"] == 0 and sum(map(int, ranges[2::3])) < NOBODY
