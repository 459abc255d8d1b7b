"""The supervisor asks the kernel: which claim of a sandbox is believed, and which is not."""

from __future__ import annotations

import os
from typing import Final

import pytest

from executor.core import layers
from executor.supervisor.proofs import contradicted, denied

LOCKED: Final = {
    "NoNewPrivs": "1", "Seccomp": "2", "Threads": "1", "Uid": "70\t70\t70\t70",
    "Gid": "70\t70\t70\t70", "CapInh": "0" * 16, "CapPrm": "0" * 16, "CapEff": "0" * 16,
    "CapAmb": "0" * 16, "Max core file size": "0 0", "Max file size": "0 0",
    "Max processes": "0 0", "Max locked memory": "0 0", "Max msgqueue size": "0 0",
    "Max data size": "4096 4096", "Max address space": "8192 8192", "Max open files": "0 0",
}  # fmt: skip
POWER: Final = "0" * 15 + "1"
# Layer → lines of a process that lacks it in one way.
LACKING: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    layers.NO_NEW_PRIVS: (("NoNewPrivs", "0"),),
    layers.SECCOMP: (("Seccomp", "0"), ("Seccomp", "1"), ("Threads", "2")),
    layers.CAPABILITIES: tuple((name, POWER) for name in LOCKED if name.startswith("Cap")),
    layers.USER: tuple(
        (name, "\t".join("0" if place == root else "70" for place in range(4)))
        for name in ("Uid", "Gid") for root in range(4)
    ),
    layers.RLIMITS: (
        *((name, text) for name in LOCKED if LOCKED[name] == "0 0" and name != "Max open files"
          for text in ("0 1", "1 1", "unlimited unlimited")),
        ("Max data size", "unlimited unlimited"), ("Max data size", "4096 unlimited"),
        ("Max address space", "unlimited unlimited"),
    ),
    layers.NO_DESCRIPTORS: (("Max open files", "0 1"), ("Max open files", "1024 4096")),
}  # fmt: skip


def test_a_locked_process_is_believed() -> None:
    """The twin: all that it claims may be so."""
    assert denied(LOCKED, layers.LAYERS) == frozenset()


@pytest.mark.parametrize(
    ("layer", "name", "text"),
    [(layer, name, text) for layer, lines in LACKING.items() for name, text in lines],
)
def test_a_layer_that_the_kernel_denies(layer: str, name: str, text: str) -> None:
    """One line that says otherwise, or is not there, and the one layer is not believed."""
    assert denied({**LOCKED, name: text}, layers.LAYERS) == {layer}
    assert denied({key: LOCKED[key] for key in LOCKED if key != name}, layers.LAYERS) == {layer}


def test_every_line_is_looked_at() -> None:
    """No proof but those above, and each of them is there."""
    assert {name for lines in LACKING.values() for name, _ in lines} == set(LOCKED)
    assert denied({}, layers.LAYERS) == set(LACKING)


def test_an_open_process_is_not_believed() -> None:
    """This process claims what it has not; a process that is gone has nothing."""
    assert contradicted(os.getpid(), layers.LAYERS) >= {
        layers.NO_NEW_PRIVS, layers.SECCOMP, layers.RLIMITS, layers.NO_DESCRIPTORS,
    }  # fmt: skip
    assert contradicted(2**22 + 1, layers.LAYERS) == set(layers.LAYERS)
