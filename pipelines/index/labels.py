"""Reading a file of labels for images that lie in one flat folder or tar, such as ILSVRC2012's val set.

Three kinds of lines are understood:

* `NAME CLASS`, separated by blanks, tabs or a comma, with or without the image's suffix: Kaggle's
  `LOC_val_solution.csv`, Caffe's `val.txt`, or the `mv NAME CLASS/` lines of `valprep.sh`;
* `CLASS` alone, one line per image in the order of the sorted names, such as
  `imagenet_2012_validation_synset_labels.txt`;
* a number from 1 to 1000 alone: the devkit's `ILSVRC2012_validation_ground_truth.txt`. It is an ILSVRC ID,
  whose order is *not* that of the sorted WordNet ids: a second file with lines `ID WORDNET_ID` must be given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

_WORDNET_ID = re.compile(r"\bn\d{8}\b")


def read_labels(path: Path, names: Sequence[str], synsets: Path | None = None) -> list[str | int]:
    """Return one label for every name (sorted): a WordNet id or other text, or a class number.

    Raises ValueError where the file does not cover the names or holds ILSVRC2012_IDs and `synsets` is None.
    """
    rows = [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
    rows = [row[1:] if row[0] == "mv" else row for row in rows]
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise ValueError(
                f"{path} has {len(rows)} labels for {len(names)} images: it belongs to another set"
            )
        labels = [row[0] for row in rows]
        if not all(label.isdigit() for label in labels):
            return list(labels)
        if synsets is None:
            raise ValueError(
                f"{path} holds ILSVRC2012_IDs, which are not in the order of the classes: give a second file "
                "with lines 'ID WORDNET_ID' (synsets=), or labels by WordNet id"
            )
        wordnet = read_synsets(synsets)
        if missing := {int(label) for label in labels} - set(wordnet):
            raise ValueError(f"{synsets} does not say which class {min(missing)} of {path} is")
        return [wordnet[int(label)] for label in labels]
    by_name = {PurePosixPath(row[0]).stem: row[1].rstrip("/") for row in rows if len(row) > 1}
    if missing_names := [name for name in names if PurePosixPath(name).stem not in by_name]:
        raise ValueError(
            f"{path} has no label for {missing_names[0]} ({len(missing_names)} of {len(names)} missing)"
        )
    found = [by_name[PurePosixPath(name).stem] for name in names]
    return [int(label) if label.isdigit() else label for label in found]


def read_synsets(path: Path) -> dict[int, str]:
    """Return ILSVRC2012_ID -> WordNet id from lines that hold both, the id first."""
    wordnet: dict[int, str] = {}
    for line in path.read_text().splitlines():
        number, found = re.match(r"\s*(\d+)", line), _WORDNET_ID.search(line)
        if number and found:
            wordnet[int(number[1])] = found[0]
    if not wordnet:
        raise ValueError(f"{path} has no lines 'ID WORDNET_ID'")
    if 0 in wordnet or (
        len(wordnet) > 1 and [wordnet[k] for k in sorted(wordnet)] == sorted(wordnet.values())
    ):
        raise ValueError(
            f"{path} numbers the sorted WordNet ids, but ILSVRC2012_IDs begin at 1 in another order"
        )
    return wordnet
