"""A page of docs/ as what a reader types: its blocks in their order, run in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from fastanc.cli import main

RUN = ("bash", "python", "yaml")
"""Languages of what a reader types or writes; other blocks show what comes out."""
_BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_REASON = re.compile(r"<!-- not run: (.+) -->\s*\Z")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")


class Block(NamedTuple):
    """One block of a page."""

    language: str
    text: str
    line: int
    reason: str | None
    """Why it is not run, as the comment before it says; None for one that is."""

    @property
    def file(self) -> str | None:
        """The file that it is, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page that a reader types or writes, in their order."""
    found = []
    for match in _BLOCK.finditer(text):
        if match[1] in RUN:
            reason = _REASON.search(text[: match.start()])
            line = text[: match.start()].count("\n") + 1
            found.append(Block(match[1], match[2], line, reason[1].strip() if reason else None))
    return found


def page_before(text: str) -> str | None:
    """Return the page in whose folder this one goes on, as `<!-- after: PAGE -->` says; None for an empty folder."""
    found = re.search(r"^<!-- after: (\S+) -->$", text, re.MULTILINE)
    return found[1] if found else None


def type_inside(page: Path) -> None:
    """As `type_in`, in the current folder and this process: for pages of fastanc's commands and files alone."""
    for block in blocks_of(page.read_text()):
        if block.file is not None:
            Path(block.file).write_text(block.text)
            continue
        assert (block.language, block.reason) == ("bash", None)
        for line in block.text.splitlines():
            program, *words = shlex.split(line)
            assert program == "fastanc", line
            assert main(words) == 0, f"{page.name}, line {block.line}: {line}"


def type_in(page: Path, folder: Path) -> str:
    """Write and run the blocks of a page in a folder, and return what was printed; AssertionError names the line."""
    said = ""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in blocks_of(page.read_text()):
        if block.reason is not None:
            continue
        if block.file is not None:
            (folder / block.file).write_text(block.text)
            continue
        words = {"bash": ["bash", "-euo", "pipefail", "-c", block.text], "python": [sys.executable, "-"]}
        done = subprocess.run(
            words[block.language],
            input=block.text if block.language == "python" else None,
            cwd=folder,
            env={**os.environ, "PATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        place = f"{page.name}, line {block.line}"
        assert done.returncode == 0, f"{place}:\n{block.text}\n{done.stdout[-3000:]}"
        said += done.stdout
    return said
