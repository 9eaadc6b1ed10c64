"""The options of a command that are no fields: never cut short, and every number in its range."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fastanc.errors import MISTAKE
from fastanc.quoting import brief, shown


class Parser(argparse.ArgumentParser):
    """Takes no option by its first letters: what is cut short here may be whole tomorrow, and mean something else."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence, and end."""
        said = message.removeprefix("argument ").replace(": is ", " is ", 1)
        print(f"fastanc: {brief(said)} (`{self.prog} --help` lists what there is)", file=sys.stderr)
        sys.exit(MISTAKE)


def local_path(text: str) -> Path:
    """Return an option's path; raises ArgumentTypeError for a URL."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"is {shown(text.partition('?')[0])}: it takes a path of this machine, download it first"
        )
    return Path(text)


def within(low: float, high: float, of: type = int, *, above: bool = False) -> Callable[[str], Any]:
    """Return what reads an option's number as a field's is read: in its range, never nan."""

    def read(text: str) -> Any:
        from fastanc import fields

        kind: Any = Annotated[of, fields.Range(low, high, above=above)]
        try:
            return fields.read(text, kind, "")
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {shown(text)}: it takes {fields.takes(kind)}") from None

    return read
