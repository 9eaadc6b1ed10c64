"""What a user says of a source beside its path: where its labels lie, what its columns are called."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source is read; every field may be left to the source itself."""

    labels: Path | None = None
    """File of labels (`index/labels.py`), in the place of what the source says."""
    synsets: Path | None = None
    """File of lines `ID WORDNET_ID`, for labels that are ILSVRC2012_IDs."""
    columns: str | None = None
    """`IMAGE,LABEL`, or `IMAGE`: columns of a list, of parquet or MDS, by name; of a list also by number, from 1."""
    images: Path | None = None
    """Folder that the paths of a list are relative to; the list's own by default."""
    class_map: Path | None = None
    """File that numbers the classes (`index/class_map.py`)."""

    def said(self, split: str) -> list[str]:
        """Return the fields that are said of a split's source; labels are the training set's first of all."""
        names = [one.name for one in fields(self) if getattr(self, one.name) is not None]
        return names if split == "train" else [name for name in names if name not in ("labels", "synsets")]


PLAIN = SourceOptions()
