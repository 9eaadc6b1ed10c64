"""What an index remembers of its making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


class OtherFormat(ValueError):
    """An index file that another version of fastanc wrote."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How an index came to be, so that a later run can tell whether its source is still the same."""

    stamp: str = ""
    """`Listing.stamp`: changes with any name, length or modification time."""
    folders: list[str] | None = None
    """Class folders, empty ones too; None where the labels are not folders."""
    left_out: list[list] = field(default_factory=list)
    """[name, bytes, mtime in ns] of the files of a tree that were rejected."""
    asked: dict[str, str] = field(default_factory=dict)
    """What was said beside the source's path: a field of SourceOptions -> its value, files as absolute paths."""
    texts: list[list[str]] = field(default_factory=list)
    """[absolute path, digest] of every file that said names or labels."""
    base: str | None = None
    """The folder that the images' paths are relative to, where that does not follow from the source."""
    numbered: bool = False
    """Whether the labels were whole numbers, not names."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about what was passed over."""


def origin_of(said: Mapping[str, Any]) -> Origin:
    """Return what an index file says of its making; raises OtherFormat where it says other things."""
    if {*said} != {one.name for one in fields(Origin)}:
        raise OtherFormat
    return Origin(**said)
