"""The machine and the versions that a report stands for."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from executor.transport.server import find_binary

_PACKAGES: Final = ("wasmtime", "nats-py", "msgpack", "cryptography", "opentelemetry-sdk")
_ROOT: Final = Path(__file__).parent.parent


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Hardware"}:
            return value.strip()
    return platform.machine()


def _memory_mib() -> int:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // (1024 * 1024)


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    return done.stdout.strip()


def gather() -> dict[str, str]:
    """What one would ask before believing a number; the load is that before the run."""
    changed = "" if not _said("git", "status", "--porcelain") else " and changes"
    return {
        "processor": f"{_cpu_model()} ({platform.machine()})",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory_mib():,} MiB",
        "kernel": platform.release(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "revision": (_said("git", "rev-parse", "--short", "HEAD") or "unknown") + changed,
        "python": platform.python_version(),
        "nats-server": _said(find_binary(), "--version").rpartition(" ")[2].removeprefix("v"),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }  # fmt: skip
