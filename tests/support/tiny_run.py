"""Runs of a few steps through the public entry: LeNets on the digits, the teacher untrained."""

from __future__ import annotations

from collections.abc import Mapping

LENETS = {
    "run.eval_every": "0",
    "data.views": "1",
    "teacher.name": "lenet5",
    "teacher.weights": "random",
    "teacher.recipe": "null",
    "teacher.cache": "off",
    "student.name": "lenet5_half",
}


def as_words(fields: Mapping[str, str]) -> list[str]:
    """Return fields of a configuration as words of a command line."""
    return [word for key, value in fields.items() for word in (f"--{key}", value)]
