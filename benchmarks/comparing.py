"""`--compare REV`: the same contender at two revisions, in the same run, as a table of ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import plot
from benchmarks.section import Section


def deltas(sections: Sequence[Section], rev: str) -> Section | None:
    """A section of new over old for each metric that both have; None where there is none.

    The ratio is of the medians; beside it stand the least and the most of the ratios of single
    rounds, which say how far this run can be trusted.
    """
    found = Section("compare", f"Compared with {rev}", f"--compare {rev}")
    for section in sections:
        for old in section.who():
            new = old.removesuffix(f" at {rev}")
            for metric in section.metrics() if new != old else ():
                ratio = section.ratio(new, old, metric)
                if ratio is None:
                    continue
                name = f"{section.name}: {new}, {metric}"
                found.add(name, "new / old", "", ratio)
                pairs = zip(section.rounds(new, metric), section.rounds(old, metric), strict=False)
                rounds = [statistics.median(a) / statistics.median(b)
                          for a, b in pairs if statistics.median(b)]  # fmt: skip
                if rounds:
                    found.notes[name] = (
                        f"by round {plot.number(min(rounds))} to {plot.number(max(rounds))}"
                    )
    return found if found.samples else None
