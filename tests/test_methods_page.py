"""The first table of docs/methods.md, against what the methods say of themselves."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fastanc.methods.base import OF_TEACHER, Method

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
LABELS = {"labels", "soft_labels"}
CACHED = {"logits", "features", "descriptors"}
# What the page calls them -> what a method calls them.
WORDS = {
    "logits": "logits",
    "features": "features",
    "stage maps": "stages",
    "descriptors": "descriptors",
    "the network": "network",
}


def rows() -> dict[str, list[str]]:
    """Return the table's cells by the method's name."""
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").split("\n## ")[0].splitlines() if line[:1] == "|"
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


ROWS = rows()


def made(name: str, **knobs: Any) -> Method:
    return Method.get_choice_class(name)(**knobs)


def own_names() -> set[str]:
    kinds = Method.get_known_choices().items()
    return {name for name, kind in kinds if kind.__module__.startswith("fastanc.methods")}


def test_every_method_has_its_row():
    assert set(ROWS) == own_names()
    assert all(len(row) == 6 for row in ROWS.values())


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"sum"}))
def test_a_row_says_what_the_method_reads(name):
    _, labels, cache, reads, weights, _ = ROWS[name]
    method = made(name)
    assert labels.startswith("yes") == bool(method.needs & LABELS)
    if (without := re.search(r"not at `(\w+)` ([\d.]+)", labels)) is not None:
        assert not made(name, **{without[1]: float(without[2])}).needs & LABELS
    if (without := re.search(r"not with `labels` (\w+)", labels)) is not None:
        assert not made(name, labels=without[1]).needs & LABELS
    of_teacher = method.needs & OF_TEACHER
    if method.needs_teacher:
        assert cache.startswith("yes") == (of_teacher <= CACHED)
        named = {
            own
            for word, own in WORDS.items()
            if re.search(rf"\b{word}\b", re.sub(r"\(.*?\)|no head's.*", "", reads))
        }
        assert named == of_teacher
    else:
        assert cache.startswith("no teacher")
    assert ("topK" in cache) == (method.needs_teacher and method.softens_only)
    if (said := re.search(r"\bT ([\d.]+)$", weights)) is not None:
        assert getattr(method, "temperature") == float(said[1])  # noqa: B009


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("l2", {"weight": 1}),
        ("kd", {"alpha": 0.9}),
        ("dkd", {"alpha": 1, "beta": 8, "labels_weight": 1}),
        ("nkd", {"gamma": 1.5, "labels_weight": 1}),
        ("dist", {"beta": 2, "gamma": 2, "labels_weight": 1}),
        ("mlkd", {"instance_weight": 0.9, "batch_weight": 0.9, "class_weight": 0.9, "labels_weight": 0.1}),
        ("srrl", {"feature_weight": 1, "head_weight": 1, "labels_weight": 1}),
        ("kdpp", {"kd_weight": 1, "direction_weight": 2, "labels_weight": 1}),
        ("crd", {"weight": 0.8, "alpha": 0}),
        ("relations", {"relation": "rkd", "distance_weight": 25, "angle_weight": 50, "alpha": 0}),
        ("queue", {"weight": 1, "size": 8192}),
        ("reviewkd", {"weight": 1, "alpha": 0}),
        ("fitnets", {"hint_weight": 100, "alpha": 0}),
        ("attention_transfer", {"beta": 1000, "alpha": 0}),
        ("fsp", {"weight": 50, "alpha": 0}),
        ("anc", {"lambda_data": 1, "dropout": 0.5}),
        ("can", {"labels_weight": 1, "data_weight": 1, "game_weight": 1, "dropout": 0.3}),
    ],
)
def test_the_defaults_are_those_of_the_row(name, knobs):
    default = {one.name: one.default for one in fields(type(made(name)))}
    assert {knob: default[knob] for knob in knobs} == knobs
    numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", ROWS[name][4].replace(",", ""))}
    for knob, value in knobs.items():
        if isinstance(value, (int, float)) and value:
            assert float(value) in numbers, knob
