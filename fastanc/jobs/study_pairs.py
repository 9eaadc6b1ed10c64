"""A study's rows against one of them, seed by seed, so that what two runs of one seed share does not count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

LEVEL = 0.95
HEAD = ("row", "difference", "std. error", "95 % interval", "n", "p", "p, Holm")


@dataclass(frozen=True)
class Pair:
    """One row less the base row, over the seeds that both have."""

    name: str
    n: int
    difference: float
    """Mean over the seeds."""
    error: float | None
    """Its standard error: sample deviation (n - 1) over the root of n; None below two seeds."""
    low: float | None
    """End of the 95 % interval by Student's t; None below two seeds or without scipy."""
    high: float | None
    p: float | None
    """Of the paired t-test, two-sided."""
    corrected: float | None
    """The same after Holm's correction for all rows that are compared."""


def paired(base: str, rows: Mapping[str, Mapping[int, float]]) -> list[Pair]:
    """Compare every row with the base row over their common seeds; rows without one are left out.

    Args:
        base: name of a row.
        rows: name -> seed -> value.
    """
    found = []
    for name, values in rows.items():
        common = sorted(values.keys() & rows[base].keys())
        if name != base and common:
            found.append((name, [values[seed] - rows[base][seed] for seed in common]))
    tests = [_test(differences) for _, differences in found]
    known = [p for p, _ in tests if p is not None]
    corrected = iter(holm(known))
    pairs = []
    for (name, differences), (p, half) in zip(found, tests):
        centre, n = mean(differences), len(differences)
        error = stdev(differences) / math.sqrt(n) if n > 1 else None
        low, high = (None, None) if half is None else (centre - half, centre + half)
        pairs.append(Pair(name, n, centre, error, low, high, p, None if p is None else next(corrected)))
    return pairs


def _test(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Return p and half of the interval's width; None for both below two values or without scipy."""
    n = len(differences)
    if n < 2:
        return None, None
    try:
        from scipy.stats import t
    except ImportError:
        return None, None
    error = stdev(differences) / math.sqrt(n)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
    if error == 0:  # no spread at all: nothing to see, or no doubt
        return (1.0 if mean(differences) == 0 else 0.0), half
    return 2 * float(t.sf(abs(mean(differences)) / error, n - 1)), half


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure, in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        corrected[place] = largest
    return corrected


def as_cells(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return the table of some pairs, its head first."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    body = [
        [
            pair.name,
            f"{pair.difference:+.2f}",
            number(pair.error, ".2f"),
            "–" if pair.low is None else f"{pair.low:+.2f} to {pair.high:+.2f}",
            str(pair.n),
            number(pair.p, ".3g"),
            number(pair.corrected, ".3g"),
        ]
        for pair in pairs
    ]
    return [list(HEAD), *body]


def caption(base: str, pairs: Sequence[Pair]) -> str:
    """Return the line above the table."""
    said = f"less {base} on the same seed: mean difference, Student's 95 % interval, paired t-test"
    if any(pair.n > 1 and pair.p is None for pair in pairs):
        return f"{said} (interval and p are said with scipy: pip install scipy)"
    return said


def as_values(base: str, pairs: Sequence[Pair]) -> dict[str, object]:
    """Return the same as plain JSON values."""
    return {"base": base, "rows": [asdict(pair) for pair in pairs]}
