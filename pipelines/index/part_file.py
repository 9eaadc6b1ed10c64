"""A tar that grows over several runs: its part, and the note that says what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from fastanc.files import named, write_text
from fastanc.pipelines.tar_file import BLOCK, END_MARK, walk


class PartFile:
    """The part of a tar `out`, beside it, and its note; `identity` says of what source and with what settings."""

    def __init__(self, out: Path, identity: object) -> None:
        self.out, self.identity = out, json.loads(json.dumps(identity))
        self.part = out.with_name(f"{out.name}.part")
        self.note = note_of(out)

    def is_written(self) -> bool:
        """Tell whether the tar has its name already, and was killed before its index was made."""
        return self.out.exists() and not self.part.exists() and self.said() == self.identity

    def said(self) -> object:
        """Return what the note says; None without one, or of one that a kill cut off."""
        try:
            return json.loads(self.note.read_text())
        except (OSError, ValueError):
            return None

    def resume(self) -> list[str]:
        """Cut the part back to its whole members, and return their names; one of another identity is begun anew."""
        names, previous, end = list[str](), 0, 0
        if self.part.exists() and self.said() == self.identity:
            try:
                for member in walk(self.part):  # the last member may lack its padding, so it is written again
                    end = previous
                    previous = member.offset + -(-member.length // BLOCK) * BLOCK
                    names.append(member.name)
            except ValueError:
                pass  # no end mark: it was killed
        self.begin(end)
        return names[:-1]

    def begin(self, end: int = 0) -> None:
        """Cut the part to so many bytes; at its start, write the note."""
        with open(self.part, "ab") as tar:
            tar.truncate(end)
        if not end:  # last, so that no other source's members ever stand under this note
            write_text(self.note, json.dumps(self.identity))

    def append(self, members: Iterable[tuple[bytes, int]], bar: tqdm) -> None:
        """Write the members that are still missing, and the end; ValueError where the tar would hold none."""
        with named(self.part), open(self.part, "ab") as tar:
            for data, count in members:
                tar.write(data)
                tar.flush()
                bar.update(count)
            if not tar.tell():
                raise ValueError(
                    f"{self.part.stem} would be empty, no image of the set decodes: get the set again"
                )
            tar.write(END_MARK)

    def drop(self) -> None:
        """Leave nothing: there is nothing to go on from."""
        for path in (self.part, self.out, self.note):
            path.unlink(missing_ok=True)


def note_of(out: Path) -> Path:
    """Return where the note of the part of a tar lies."""
    return out.with_name(f"{out.name}.part.json")


def check_free(out: Path) -> None:
    """Raise FileExistsError where the tar is there already."""
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it first, or choose another name")
