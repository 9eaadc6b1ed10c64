"""The contact sheet of views: its pixels, what stands below them, its mistakes, and its place in the report."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastanc.cli import main as command
from fastanc.jobs.report import write_report
from fastanc.parsing import parse
from fastanc.pipelines.order import Picks
from fastanc.pipelines.views import CentreCrop
from fastanc.train import train
from fastanc.training.assemble import open_images
from fastanc.training.contact_sheet import Layout, partners
from fastanc.training.inputs import Input
from support.images import class_folders
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

FULL = ["--data.looks", "rand-m9-n2", "--data.erase", "0.5", "--data.mix", "both", "--data.mix_share", "0.7"]
PHOTOS = ["--data.image_px", "32", "--data.resize_px", "36", "--data.batch", "8", "--data.val_share", "0.1"]


def tile(sheet: Image.Image, layout: Layout, row: int, column: int) -> np.ndarray:
    """A picture of the sheet, [S, S, 3], after a look at whether all of its pixels were enlarged alike."""
    x, y = layout.corner(row, column)
    shown = np.asarray(sheet.crop((x, y, x + layout.tile_px, y + layout.tile_px)))
    small = shown[:: layout.times, :: layout.times]
    assert (shown == small.repeat(layout.times, 0).repeat(layout.times, 1)).all()
    return small


def below(sheet: Image.Image, layout: Layout, row: int, column: int) -> np.ndarray:
    """The strip that a caption stands in, as grey."""
    x, y = layout.corner(row, column)
    y += layout.tile_px
    return np.asarray(sheet.convert("L").crop((x, y, x + layout.tile_px, y + 15)))


def made(source: Input, numbers: np.ndarray, view: int) -> list[np.ndarray]:
    """What a run's input makes of images in a view, one alone in its batch."""
    batches = (source.picked(1, view, np.array([number])) for number in numbers)
    return [b.images[0].expand(3, -1, -1).permute(1, 2, 0).numpy() for (b,) in batches]


@pytest.mark.parametrize("kind", ["digits", "padded", "photos"])
def test_a_sheet_shows_what_the_input_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    words, name = FULL, "photos" if kind == "photos" else "digits"
    if kind == "padded":
        words = [*FULL, "--data.crop", "padded"]
    if kind == "photos":
        folder = class_folders(tmp_path / "photos", a=9, b=8)
        words = [*FULL, "--data.name", str(folder), *PHOTOS]
    out = tmp_path / "new" / "sheet.png"
    shape = ["--images", "5", "--views", "3"]
    assert command(["views", "digits_anc", *words, "--out", str(out), *shape]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{out}: rand-m9-n2, 50 % erased, mixup or cutmix of 70 % of the pairs; {name}, ")
    source = open_images(parse(["--recipe", "digits_anc", *words]))
    sheet, layout = Image.open(out), Layout(source.views.out_px, 5, 4)
    assert sheet.size == layout.size
    assert layout.times == 3
    assert layout.tile_px >= 96
    numbers = np.arange(5) * source.train.num_images // 5
    (plain,) = source.train.batches(
        [Picks(numbers, np.zeros_like(numbers))],
        CentreCrop(source.views.out_px, 36 if kind == "photos" else 32),
    )
    for row in range(5):
        expected = plain.images[row].expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert (tile(sheet, layout, row, 0) == expected).all()
    shown = []
    for view in range(3):
        for row, picture in enumerate(made(source, numbers, view)):
            shown.append(tile(sheet, layout, row, view + 1))
            assert (shown[-1] == picture).all()
            assert below(sheet, layout, row, view + 1).min() < 128  # a caption stands there
    assert len({picture.tobytes() for picture in shown}) == len(shown)


def test_captions_say_the_partner_and_the_weight_of_the_labels() -> None:
    source = open_images(parse([*FULL, "--method.type", "kd"]))
    mixing = source.views.mixing
    assert mixing is not None
    numbers = np.arange(0, 200, 5)
    captions = partners(source, numbers, 2)
    partner = mixing.pairing.partners(numbers, np.full_like(numbers, 2))
    (batch,) = source.picked(len(numbers), 2, numbers)
    classes, soft = source.train.labels, batch.labels
    assert classes is not None
    assert soft is not None
    alone = 0
    for row, said in enumerate(captions):
        own, other = classes[numbers[row]], classes[partner[row]]
        if said == "alone":
            alone += 1
            assert soft[row, own] == 1
            continue
        match = re.fullmatch(r"\+ (\d+) +([01]\.\d\d)", said)
        assert match is not None, said
        assert int(match[1]) == partner[row]
        weight = 1.0 if own == other else float(match[2])
        assert float(soft[row, own]) == pytest.approx(weight, abs=0.00501)
    assert 0 < alone < len(captions)


def test_nothing_stands_below_views_that_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "plain.png"
    assert command(["views", "--images", "2", "--views", "2", "--out", str(out)]) == 0
    sheet, layout = Image.open(out), Layout(32, 2, 3)
    assert below(sheet, layout, 1, 0).min() < 128  # the image's number and class
    assert below(sheet, layout, 1, 1).min() == 255
    before = out.read_bytes()
    assert command(["views", "--images", "2", "--views", "2", "--out", str(out)]) == 0
    assert out.read_bytes() == before


MISTAKES = [
    (["cifar10_datafree"], "trains on latent vectors, of which there are no views"),
    (["--views", "9"], "--views 9 is more than the 8 that every image has"),
    (["--data.views", "0", "--views", "65"], "--views is '65'"),
    (["--images", "0"], "--images is '0'"),
    (["digits_ank"], "did you mean digits_anc"),
    (["digits_anc", "--recipe", "digits_anc"], "give one recipe, not 2"),
    (["--data.looks", "trivail"], "trivail"),
    (["--data.name", "/gone/set"], "/gone/set does not exist"),
    (["--data.pad", "3"], "data.pad does nothing"),
    (["--data.mix", "mixup", "--method.type", "can"], "needs one true class of every picture"),
    (["--out", "folder"], "folder is a folder: name a file in it"),
    (["--out", "notes.txt"], "notes.txt exists and is no PNG"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    out = [] if "--out" in words else ["--out", "sheet.png"]
    try:
        code = command(["views", *words, *out])
    except SystemExit as ended:  # the parser's own
        code = ended.code
    assert code == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fastanc: ")]
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_more_images_than_there_are_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = class_folders(tmp_path / "photos", a=9, b=8)
    words = ["--data.name", str(folder), *PHOTOS, "--out", str(tmp_path / "sheet.png")]
    assert command(["views", *words, "--images", "20"]) == 2
    assert "--images 20 is more than the 15 of photos: lower it" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_weights_that_are_not_there_are_no_mistake_and_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from contextlib import suppress; from fastanc.cli import main\n"
        "with suppress(SystemExit): main(['views', '--help'])\n"
        "main(['views', '--data.looks', 'trivail', '--out', 'x.png'])\n"
        "print('torch' in sys.modules)\n"
        "print(main(['views', '--student.weights', 'gone.pt', '--teacher.weights', 'gone.pt',"
        " '--teacher.recipe', 'null', '--images', '1', '--out', 'x.png']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    *_, free, line, ended = done.stdout.splitlines()
    assert (free, ended) == ("False", "0"), done.stderr
    assert line.startswith("x.png: ")


# ---- the report


def tiny_run(folder: Path, *words: str) -> Path:
    fields = {**LENETS, "run.max_steps": "1", "run.out": str(folder), "data.views": "3"}
    return train(parse([*as_words(fields), *words]))


def pictures(page: Path) -> list[Image.Image]:
    found = re.findall(r"src='data:image/\w+;base64,([^']+)'", page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_the_report_shows_the_views_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    mixed = tiny_run(tmp_path, *FULL, "--run.name", "mixed")
    plain = tiny_run(tmp_path, "--run.name", "plain")
    again = tiny_run(tmp_path, *FULL, "--run.name", "again", "--run.seed", "1")
    page = write_report([mixed, plain, again], tmp_path / "report.html")
    (sheet,) = pictures(page)
    layout = Layout(32, 4, 1 + 3)  # no more views than there are
    assert sheet.size == layout.size
    source = open_images(parse(["--config_path", str(mixed / "config.yaml")]))
    numbers = np.arange(4) * source.train.num_images // 4
    for row, picture in enumerate(made(source, numbers, 1)):
        assert (tile(sheet, layout, row, 2) == picture).all()
    said = re.findall("the views are not shown: [^<]*", page.read_text())
    assert said == ["the views are not shown: they are those of mixed"]


def test_a_report_without_the_set_says_why_it_shows_no_views(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = class_folders(tmp_path / "photos", a=9, b=8, c=8)
    run = tiny_run(tmp_path, "--data.name", str(folder), *PHOTOS, "--data.grey", "0.5")
    page = write_report([run], tmp_path / "report.html")
    (sheet,) = pictures(page)
    assert sheet.size == Layout(32, 4, 4).size
    shutil.rmtree(folder)
    class_folders(folder, a=9, b=9, c=8)  # another set has its name
    (tmp_path / "photos.index").unlink()
    page = write_report([run], tmp_path / "report.html")
    assert pictures(page) == []
    assert page.read_text().count("the views are not shown: the set is now another one than the run had") == 1
    shutil.rmtree(folder)
    page = write_report([run], tmp_path / "report.html")
    assert pictures(page) == []
    assert page.read_text().count("the views are not shown: ") == 1
    assert f"{folder} does not exist" in page.read_text()
