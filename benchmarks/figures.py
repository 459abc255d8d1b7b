"""The figures that `executor bench plan` reckons with, taken from a run's sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.environments import ROOT
from benchmarks.peers.work import WORDS
from benchmarks.section import Section

FILE: Final = ROOT / "executor" / "cli" / "figures.json"
_FROM: Final = (
    # figure, scenario, contender, metric
    ("submitter_us", "throughput", "executor", "CPU submitter"),
    ("server_us", "throughput", "executor", "CPU server"),
    ("supervisor_us", "throughput", "executor", "CPU supervisor"),
    ("sandbox_us", "throughput", "executor", "CPU sandboxes"),
    ("server_kib_us", "scaling", "a KiB more", "CPU server"),
    ("supervisor_kib_us", "scaling", "a KiB more", "CPU supervisor"),
    ("sandbox_kib_us", "scaling", "a KiB more", "CPU sandboxes"),
    ("task_bytes", "scaling", "stored", "task beside input"),
    ("outcome_bytes", "scaling", "stored", "outcome"),
    ("once_us", "safety", "once-only outcome", "on"),
    ("supervisor_mib", "memory", "supervisor", "resident"),
    ("sandbox_mib", "memory", "a sandbox", "proportional"),
)


def seen(machine: Mapping[str, str], sections: Sequence[Section]) -> dict[str, object]:
    """The figures, if this run has all of them; else nothing."""
    by_name = {section.name: section for section in sections}
    found: dict[str, object] = {}
    for figure, scenario, who, metric in _FROM:
        value = by_name[scenario].figure(who, metric) if scenario in by_name else None
        if value is None:
            return {}
        # A difference of two noisy costs may come out below nothing.
        found[figure] = round(max(value, 0.0), 3)
    once = found.pop("once_us")
    assert isinstance(once, float)
    return {
        "schema": "executor.figures/1",
        "machine": f"{machine['processor']}, {machine['cores']} cores, revision "
        f"{machine['revision']}",
        "input_bytes": len(WORDS), **found, "stream_per_s": round(1e6 / once),
    }  # fmt: skip


def write(path: Path, figures: Mapping[str, object]) -> None:
    """Write them as a file that people read."""
    path.write_text(json.dumps(figures, indent=1) + "\n")
