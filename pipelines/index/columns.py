"""Which column of a table is the image and which the class, by their headers or by what the user says."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME_WORDS = (
    "image file filename path filepath imagepath imagename imagefile imagefilename imagefilepath imageid img imgname"
    " imgpath imgfile imgid id fname name key photo picture images files filenames filepaths paths relativepath"
    " relpath idcode"
)
_LABEL_WORDS = (
    "label class target category classname labelname categoryname classlabel classid labelid categoryid labels"
    " classes targets categories species breed synset wnid groundtruth y predictionstring finelabel diagnosis"
)
NAMES, LABELS = _NAME_WORDS.split(), _LABEL_WORDS.split()
"""Headers as `bare` leaves them; the surest first."""

BOXES = "predictionstring"
"""The header of Kaggle's column that holds a class, then a box."""


def bare(header: str) -> str:
    """A column's header as it is compared: `Image_ID`, `image id` and `ImageId` are one."""
    return re.sub(r"[\W_]+", "", header.lower())


def column_of(head: Sequence[str], words: Sequence[str]) -> int | None:
    """Return which column is called by the surest of some words; None where none is."""
    there = [bare(cell) for cell in head]
    return next((there.index(word) for word in words if word in there), None)


def asked_columns(asked: str, head: Sequence[str], where: object) -> tuple[int, int | None]:
    """Return the positions of the columns `IMAGE,LABEL` or `IMAGE`; raises ValueError for one that is not there."""
    found, rest = list[int](), asked
    for _ in range(2):
        exact = [k for k, name in enumerate(head) if rest == name or rest.startswith(f"{name},")]
        if not exact:
            wanted = rest.partition(",")[0] if not found else rest
            raise ValueError(f"{where} has no column {wanted!r}: it has {', '.join(map(str, head))}")
        found.append(max(exact, key=lambda k: len(head[k])))  # a header may hold a comma
        rest = rest[len(head[found[-1]]) + 1 :]
        if not rest:
            break
    else:
        raise ValueError(f"columns {asked!r} names more than two: say IMAGE,LABEL")
    return found[0], found[1] if len(found) > 1 else None
