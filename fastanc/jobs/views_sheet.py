"""The contact sheet of views, so that a person can look at a policy: `fastanc views`, and a part of the report."""

from __future__ import annotations

import io
import os
from pathlib import Path

from fastanc.errors import sentence
from fastanc.files import make_folder, written
from fastanc.parsing import parse
from fastanc.quoting import counted
from fastanc.training.assemble import open_images
from fastanc.training.contact_sheet import SMALLEST_PX, contact_sheet, policy
from fastanc.training.inputs import Input, data_notes
from fastanc.training.metrics import read_metrics

_IN_REPORT = (4, 5)
_PNG = b"\x89PNG\r\n\x1a\n"


def write_views(source: Input, out: Path, images: int | None = None, views: int | None = None) -> str:
    """Write the sheet of a run's input as a PNG and say in one line what it shows.

    Raises ValueError for more images or views than there are, FileExistsError where `out` is something else.
    """
    check_place(out)
    sheet = contact_sheet(source, images, views)
    make_folder(out.parent)
    with written(out) as file:
        sheet.save(file, "PNG", optimize=True)
    return f"{out}: {policy(source)}; {source.train.name}, {counted(source.train.num_images, 'image')}"


def check_place(out: Path) -> None:
    """Raise FileExistsError where a sheet would take the place of a folder, or of a file that is no PNG."""
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder: name a file in it, such as {out / 'views.png'}")
    if out.is_file():
        with out.open("rb") as file:
            if file.read(len(_PNG)) != _PNG:
                raise FileExistsError(f"{out} exists and is no PNG: choose another name")


def sheet_of_run(folder: Path) -> tuple[bytes, str]:
    """Return a small sheet of a run's views as a PNG or JPEG, and why there is none, where there is none.

    The set is opened again, as the run's configuration says, and has to be what the run said of it.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":  # the others would have to open the set as well
        return b"", "one of several processes wrote this report; `fastanc report` shows them"
    metrics = folder / "metrics.jsonl"
    # A report is written whatever has become of the set, its files, or a plugin's code.
    try:
        source = open_images(parse(["--config_path", str(folder / "config.yaml")]))
        said = data_notes(source)[0]
        notes = [line.get("text") for line in read_metrics(metrics)] if metrics.is_file() else []
        if said not in notes:
            return b"", f"the set is now another one than the run had ({said})"
        most = source.order.views or _IN_REPORT[1]
        sheet = contact_sheet(source, min(_IN_REPORT[0], source.train.num_images), min(_IN_REPORT[1], most))
    except Exception as error:
        return b"", (sentence(error) or type(error).__name__).splitlines()[0]
    file = io.BytesIO()
    if source.views.out_px < SMALLEST_PX:
        sheet.save(file, "PNG", optimize=True)
    else:  # photographs would make the page some megabytes longer
        sheet.save(file, "JPEG", quality=88)
    return file.getvalue(), ""
