"""Known advisories against what is installed, and how old the last look was.

`advisories.toml` is kept by hand: no auditor is asked, since one that could reach nothing has been
seen to report success. A review that is older than 35 days is a failure by itself.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.version import Version

from supply import installed

FILE: Final = Path(__file__).with_name("advisories.toml")
REVIEW_DAYS: Final = 35  # a month, and some days to get to it


@dataclass(frozen=True, slots=True)
class Advisory:
    """Versions of a package below `safe` are known to be bad; `accepted` says why one is used."""

    package: str
    safe: str
    id: str
    accepted: str = ""


@dataclass(frozen=True, slots=True)
class Review:
    """The table: when somebody last looked, and what is known."""

    reviewed: dt.date
    advisories: tuple[Advisory, ...]


def read(path: Path = FILE) -> Review:
    """The table. Raises `ValueError`, `KeyError` or `TypeError` for another form."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Advisory(**row) for row in table["advisory"])
    reviewed = table["reviewed"]
    if type(reviewed) is not dt.date:
        raise ValueError("`reviewed` is no day")
    return Review(reviewed, rows)


def problems(
    review: Review, today: dt.date, version: Callable[[str], str | None] = installed.version
) -> list[str]:
    """What is installed and known to be bad, and a review that is too old or in the future."""
    found = []
    age = (today - review.reviewed).days
    if age > REVIEW_DAYS:
        found.append(
            f"advisories.toml was reviewed {age} days ago, at most {REVIEW_DAYS}: look for new "
            "advisories about each package of production.lock, then set `reviewed`"
        )
    if age < 0:
        found.append("advisories.toml was reviewed in the future")
    for one in review.advisories:
        have = version(one.package)
        if have is not None and Version(have) < Version(one.safe) and not one.accepted:
            found.append(f"{one.package} {have} is below {one.safe}: {one.id}")
    return found


def accepted(review: Review, version: Callable[[str], str | None]) -> Iterable[Advisory]:
    """The rows that are accepted although what is installed needs it no more: to be taken out."""
    for one in review.advisories:
        have = version(one.package)
        if one.accepted and have is not None and Version(have) >= Version(one.safe):
            yield one
