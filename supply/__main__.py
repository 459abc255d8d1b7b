"""`python -m supply sbom [--diff FILE] | check`."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from executor import __version__
from supply import advisories, installed, lock, sbom


def document() -> str:
    """The list of what is installed here for running the executor."""
    roots = lock.roots(())
    names = sorted({str(canonicalize_name(one.name)) for one in roots})
    return sbom.make(installed.closure(roots), names, __version__)


def check(today: dt.date) -> list[str]:
    """Everything that is wrong with locks and advisories."""
    review = advisories.read()
    found = advisories.problems(review, today)
    for name, extras in lock.LOCKS.items():
        pins = lock.read(name)
        found += [f"{name}: {line}" for line in lock.problems(pins, lock.roots(extras))]
        locked = {pin.name: pin.version for pin in pins.values()}
        found += [f"{name}: {line}" for line in advisories.problems(review, today, locked.get)]
    return sorted(set(found))


def main(arguments: Sequence[str]) -> int:
    """One command; 1 if it found something."""
    parser = argparse.ArgumentParser(prog="python -m supply")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("sbom", help="print what is inside, as CycloneDX JSON")
    listing.add_argument("--diff", type=Path, metavar="FILE", help="what changed since FILE")
    verbs.add_parser("check", help="hold locks and advisories against what is installed")
    options = parser.parse_args(arguments)
    if options.verb == "sbom" and options.diff is None:
        sys.stdout.write(document())
        return 0
    if options.verb == "sbom":
        lines = sbom.diff(options.diff.read_text(encoding="utf-8"), document())
    else:
        lines = check(dt.datetime.now(tz=dt.UTC).date())
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
