"""Fields that follow another one where nobody says them: the size of evaluation, what belongs to a teacher's name."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from fastanc.plain_yaml import Word

SMALL_PX = 64
"""Images up to this side are cut and judged as they are."""
_USUAL = (224, 256)
_MOST_PX = 2**12
_SIZES = ("image_px", "resize_px")
_OF_A_TEACHER = ("weights", "weights_key", "recipe", "mean", "std", "head", "stages", "kwargs", "classes")


def complete(tree: Mapping[str, Any]) -> None:
    """Give a recipe that says one size the other one, in the usual ratio."""
    data = tree.get("data")
    if isinstance(data, MutableMapping) and "image_px" in data and "resize_px" not in data:
        _set(data, _resized(data["image_px"]))


def follow(tree: MutableMapping[str, Any], said: Mapping[str, Any]) -> None:
    """Let what belongs to a recipe's value give way to what is said in its place, group.field -> value.

    Evaluation scales in the ratio that the recipe has, or else in the usual one. A recipe's weights, and the recipe
    that trains them, are those of its own teacher: another one starts from what its name stands for.
    """
    data, teacher = tree.get("data"), tree.get("teacher")
    if "data.image_px" in said and "data.resize_px" not in said:
        if data is None:
            data = tree["data"] = {}
        if isinstance(data, MutableMapping):
            _set(data, _resized(said["data.image_px"], *(data.get(key) for key in _SIZES)))
    if not isinstance(teacher, MutableMapping) or "name" not in teacher or "teacher.name" not in said:
        return
    if str(said["teacher.name"]) != str(teacher["name"]):
        for field in _OF_A_TEACHER:
            teacher.pop(field, None)


def _set(data: MutableMapping[str, Any], resized: int | None) -> None:
    if resized is not None:
        data["resize_px"] = Word(str(resized))


def _resized(image_px: Any, *recipe: Any) -> int | None:
    """To what evaluation scales for images of this side, by a recipe's two sizes; None where it is no number."""
    try:
        px = int(image_px)
    except (TypeError, ValueError):
        return None
    if not 1 <= px <= _MOST_PX:
        return None
    image, resized = (1, 1) if px <= SMALL_PX else _USUAL
    with suppress(TypeError, ValueError):  # the recipe has none, or not both
        image, resized = map(int, recipe)
    if not 0 < image <= resized:
        return None
    return min(_MOST_PX, round(px * resized / image))
