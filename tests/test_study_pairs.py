"""Rows of a study against a base row on the same seeds, against scipy and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastanc.jobs.study_file import Study, chosen, load
from fastanc.jobs.study_pairs import holm, paired
from fastanc.jobs.study_table import Row, as_html, as_text, as_values

stats = pytest.importorskip("scipy.stats")


def rows(**values: list[float]) -> dict[str, dict[int, float]]:
    return {name: dict(enumerate(found)) for name, found in values.items()}


def test_a_pair_is_scipys() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(44, 1, 5)
    others = {name: base + draw.normal(shift, 0.3, 5) for name, shift in (("a", -1), ("b", 0), ("c", 0.2))}
    found = paired("l2", rows(l2=list(base), **{name: list(one) for name, one in others.items()}))
    assert [pair.name for pair in found] == ["a", "b", "c"]
    for pair in found:
        test = stats.ttest_rel(others[pair.name], base)
        interval = test.confidence_interval(0.95)
        assert (pair.p, pair.low, pair.high) == pytest.approx((test.pvalue, interval.low, interval.high))
        assert pair.error == pytest.approx(stats.sem(others[pair.name] - base))
    raw = {pair.name: pair.p for pair in found}
    order = sorted(raw, key=raw.__getitem__)
    stepped = np.maximum.accumulate([min(1, (3 - k) * raw[name]) for k, name in enumerate(order)])
    assert {pair.name: pair.corrected for pair in found} == pytest.approx(dict(zip(order, stepped)))


def test_by_hand() -> None:
    """Differences -2, -1, 0: mean -1, deviation 1, error 1 / sqrt 3, t = -sqrt 3 of 2 degrees: p = 0.2254."""
    (pair,) = paired("l2", rows(l2=[10, 10, 10], anc=[8, 9, 10]))
    assert (pair.difference, pair.error) == pytest.approx((-1, 1 / math.sqrt(3)))
    # Student's t of two degrees: P(|T| > t) = 1 - t / sqrt(2 + t^2); its 97.5 % point is 4.3027.
    assert pair.p == pytest.approx(1 - math.sqrt(3) / math.sqrt(5))
    assert (pair.low, pair.high) == pytest.approx(
        (-1 - 4.3027 / math.sqrt(3), -1 + 4.3027 / math.sqrt(3)), rel=1e-4
    )
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_only_common_seeds_count_and_no_spread_is_no_error() -> None:
    values = {"l2": {0: 1.0, 1: 2.0, 2: 9.0}, "a": {1: 2.5, 2: 9.5, 7: 0.0}, "b": {0: 1.0}, "c": {5: 1.0}}
    same, one = paired("l2", values)
    assert (same.name, same.n, same.difference, same.error, same.p) == ("a", 2, 0.5, 0.0, 0.0)
    assert (one.name, one.n, one.difference, one.error, one.p, one.corrected) == (
        "b",
        1,
        0.0,
        None,
        None,
        None,
    )
    (equal,) = paired("l2", rows(l2=[1, 2], a=[1, 2]))
    assert equal.p == 1


def test_the_table_has_the_comparison() -> None:
    table = [
        Row("l2", (10.0, 11.0), (1.0, 1.0), 2, None, (0, 1)),
        Row("anc <b>", (9.0, 10.5), (1.0, 1.0), 2, None, (0, 1)),
    ]
    text = as_text("t", table, "error_pct", ["note"], "l2")
    (line,) = [line for line in text.splitlines() if line.startswith("anc <b>") and "to" in line]
    assert line.split()[2:4] == ["-0.75", "0.25"]
    assert "less l2 on the same seed" in text
    assert "anc &lt;b&gt;" in as_html("t", table, "error_pct", [], "l2")
    assert "paired t-test" in as_html("t", table, "error_pct", [], "l2")
    values = json.loads(json.dumps(as_values("t", table, "error_pct", [], "l2")))
    assert values["paired"]["base"] == "l2"
    assert values["paired"]["rows"][0]["difference"] == -0.75
    assert "less" not in as_text("t", table, "error_pct", ["note"])
    assert "paired" not in as_values("t", table, "error_pct", [])


def test_a_base_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("title: t\nrecipe: digits_anc\ngrid: [{a: {}, b: {}}]\nbase: c\n")
    with pytest.raises(ValueError, match="base 'c' is no row of the grid: it has a, b"):
        load(str(path))
    path.write_text(path.read_text().replace("base: c", "base: a"))
    study = load(str(path))
    assert study.base == "a"
    assert chosen(study, ["b"], [], None).base is None
    assert chosen(study, ["a"], [], None).base == "a"
    assert replace(study, base=None) == Study(title="t", recipe="digits_anc", grid=({"a": {}, "b": {}},))
