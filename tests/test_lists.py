"""Lists of paths and classes: headers, delimiters, quotes, blanks; where the images lie; contradictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastanc.cli import main
from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.index.build import Index, build_index
from fastanc.pipelines.source_options import SourceOptions
from support.images import jpeg, put

NAMES = ["cat 1.jpg", "b/dog, 2.jpg", "b/dog 3.jpg", "ü.jpg"]
LABELS = ["cat", "dog", "dog", "big cat"]


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTANC_DATA", raising=False)
    return put(tmp_path / "images", {name: jpeg(k, (40 + k, 30)) for k, name in enumerate(NAMES)})


def _build(path: Path, **options: object) -> Index:
    return build_index(path, SourceOptions(**options), workers=1, progress=False)  # type: ignore[arg-type]


def _said(index: Index) -> dict[str, str]:
    assert index.labels is not None
    return {index.name(i): index.classes[k] for i, k in enumerate(index.labels.tolist())}


def _quoted(word: str) -> str:
    return '"{}"'.format(word.replace('"', '""'))


TEXTS = {
    "header": "".join(f"{_quoted(n)},{_quoted(x)}\n" for n, x in zip(["path", *NAMES], ["label", *LABELS])),
    "no header": "".join(f"{_quoted(n)},{x}\n" for n, x in zip(NAMES, LABELS)),
    "tabs": "".join(f"{x}\t{n}\n" for n, x in zip(["Image Path", *NAMES], ["Class Name", *LABELS])),
    "semicolons": "".join(
        f"{k};{n};{x}\r\n" for k, (n, x) in enumerate(zip(["file", *NAMES], ["y", *LABELS]))
    ),
    "bars": "".join(f"{n}|{x}\n" for n, x in zip(["file_name", *NAMES], ["category", *LABELS])),
    "lines in quotes": 'note,path,label\n"two\nlines",cat 1.jpg,cat\n'
    + "".join(f"x,{_quoted(n)},{x}\n" for n, x in zip(NAMES[1:], LABELS[1:])),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_way_of_writing_a_table(tmp_path: Path, images: Path, kind: str, mark: str) -> None:
    path = images / "list.txt"
    path.write_text(mark + TEXTS[kind], newline="")
    assert _said(_build(path)) == dict(zip(NAMES, LABELS))


def test_utf_16_json_and_lines_of_blanks(tmp_path: Path, images: Path) -> None:
    (images / "list.csv").write_bytes(TEXTS["header"].encode("utf-16"))
    assert _said(_build(images / "list.csv")) == dict(zip(NAMES, LABELS))
    rows = [{"extra": [1], "file_name": n, "label": x} for n, x in zip(NAMES, LABELS)]
    (images / "list.json").write_text(json.dumps(rows))
    assert _said(_build(images / "list.json")) == dict(zip(NAMES, LABELS))
    (images / "caffe.txt").write_text("".join(f"{n} {k % 2}\n" for k, n in enumerate(NAMES)))
    index = _build(images / "caffe.txt")
    assert _said(index) == {n: str(k % 2) for k, n in enumerate(NAMES)}
    assert index.numbered
    (images / "alone.txt").write_text("\n".join(NAMES))
    assert _build(images / "alone.txt").labels is None


def test_columns_are_asked_for_by_name_and_by_number(tmp_path: Path, images: Path) -> None:
    text = "".join(f"{_quoted(n)},{k},{x}\n" for k, (n, x) in enumerate(zip(NAMES, LABELS)))
    (images / "list.csv").write_text("where,a,what\n" + text)
    with pytest.raises(
        ValueError, match=r"which column is the class: name them by --columns IMAGE,LABEL .* a, what"
    ):
        _build(images / "list.csv")
    assert _said(_build(images / "list.csv", columns="where,what")) == dict(zip(NAMES, LABELS))
    assert _build(images / "list.csv", columns="where").labels is None
    with pytest.raises(ValueError, match=r"list\.csv has no column 'wat': it has where, a, what"):
        _build(images / "list.csv", columns="where,wat")
    (images / "plain.csv").write_text(text)
    assert _said(_build(images / "plain.csv", columns="1,3")) == dict(zip(NAMES, LABELS))


def test_images_lie_elsewhere_absolute_above_or_without_their_suffix(tmp_path: Path, images: Path) -> None:
    put(tmp_path / "lists", {"a.csv": TEXTS["header"].encode()})
    path = tmp_path / "lists" / "a.csv"
    with pytest.raises(
        ValueError, match=r"names 4 images, of which none is there .*--images \(data\.images\)"
    ):
        _build(path)
    assert _said(_build(path, images=images)) == dict(zip(NAMES, LABELS))
    with pytest.raises(
        ValueError, match="was indexed with .*images as its images, and .*other is asked for: run"
    ):
        open_dataset(str(path), "train", options=SourceOptions(images=tmp_path / "other"))
    data = open_dataset(str(path), "train", val_share=0.3)  # what it was indexed with stays in force
    assert data.num_images == 3
    absolute = "".join(f"{_quoted(str(images / n))},{x}\n" for n, x in zip(NAMES, LABELS))
    (tmp_path / "lists" / "b.csv").write_text(absolute)
    index = _build(tmp_path / "lists" / "b.csv")
    assert {Path(p).name for p, _, _ in index.places(range(4))} == {Path(n).name for n in NAMES}
    above = "".join(f"{_quoted('../images/' + n)},{x}\n" for n, x in zip(NAMES, LABELS))
    (tmp_path / "lists" / "c.csv").write_text(above)
    assert _said(_build(tmp_path / "lists" / "c.csv")) == {f"../images/{n}": x for n, x in zip(NAMES, LABELS)}
    (tmp_path / "lists" / "d.csv").write_text(
        "id_code,diagnosis\n" + "".join(f"{_quoted(n[:-4])},{x}\n" for n, x in zip(NAMES, LABELS))
    )
    assert _said(_build(tmp_path / "lists" / "d.csv", images=images)) == dict(zip(NAMES, LABELS))
    windows = "".join(f"{_quoted(n.replace('/', chr(92)))},{x}\n" for n, x in zip(NAMES, LABELS))
    (images / "e.csv").write_text(windows)
    assert _said(_build(images / "e.csv")) == dict(zip(NAMES, LABELS))


REFUSED = {
    "cat 1.jpg,cat\ncat 1.jpg,dog\n": r"calls cat 1\.jpg 'cat' in line 1 and 'dog' in line 2: keep one",
    "path,label\ncat 1.jpg,cat\nü.jpg,\n": r"line 3 has no class for ü\.jpg .*fill it in",
    "path,label\ncat 1.jpg,cat\n,dog\n": "line 3 names no image: remove it",
    "path,label\n": "lists nothing: give a line PATH,CLASS",
    "path,label\ncat 1.jpg,cat\nb/dog, 2.jpg,dog\n": "line 3 has 3 columns and line 1 has 2: put a word that",
    '{"path": "cat 1.jpg"\n': "line 1 is not JSON",
    "[1, 2]": "line 1 is no JSON object",
    "[" * 100_000: "line 1 is not JSON",
    "cat 1.jpg\0,cat\nü.jpg,dog\n": "is not a text in UTF-8",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_meant_is_one_sentence(tmp_path: Path, images: Path, text: str) -> None:
    (images / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"list\.csv.*{REFUSED[text]}"):
        _build(images / "list.csv")


def test_missing_images_and_lines_that_repeat_are_said(tmp_path: Path, images: Path) -> None:
    (images / "list.csv").write_text("path,label\ncat 1.jpg,cat\ngone.jpg,dog\nü.jpg,dog\ncat 1.jpg,cat\n")
    index = _build(images / "list.csv")
    assert (len(index), index.rejected) == (2, 1)
    assert index.remarks == [f"1 lines of {images / 'list.csv'} say again what another says"]
    assert (
        (images / "list.csv.rejected.tsv").read_text().endswith("gone.jpg\tcannot be read (no such file)\n")
    )
    put(images, {"gone.jpg": jpeg(7)})
    with pytest.raises(ValueError, match=r"gone\.jpg changed from -1 to \d+ bytes since the set was indexed"):
        open_dataset(str(images / "list.csv"), "train")


def test_imagefolder_s_metadata_labels_splits_from_their_own_or_the_upper_folder(
    tmp_path: Path, images: Path
) -> None:
    for split in ("train", "validation"):
        put(tmp_path / "own" / split, {f"{k}.jpg": jpeg(k) for k in range(4)})
        rows = "".join(f"{k}.jpg,{'xy'[k % 2]}\n" for k in range(4))
        (tmp_path / "own" / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    train, val = open_splits(str(tmp_path / "own"))
    assert (train.classes, val.num_images) == (["x", "y"], 4)
    for split in ("train", "validation"):
        (tmp_path / "own" / split / "metadata.csv").unlink()
        for index in (tmp_path / "own").glob("*.index"):
            index.unlink()
    rows = [{"file_name": f"{s}/{k}.jpg", "label": k % 2} for s in ("train", "validation") for k in range(4)]
    (tmp_path / "own" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, val = open_splits(str(tmp_path / "own"))
    assert train.labels is not None
    assert (train.labels.tolist(), train.classes, val.num_images) == ([0, 1, 0, 1], ["0", "1"], 4)
    (tmp_path / "own" / "metadata.jsonl").write_text('{"file_name": "train/0.jpg", "text": "a caption"}')
    assert build_index(tmp_path / "own" / "train", progress=False).labels is None  # captions are no classes


def test_the_command_and_the_fields(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "lists", {"a.csv": TEXTS["no header"].encode()}) / "a.csv"
    assert main(["index", str(path), "--images", str(images), "--columns", "1,2", "--workers", "1"]) == 0
    assert "4 images, 3 classes" in capsys.readouterr().out
    assert main(["index", str(images), "--columns", "1,2"]) == 2
    assert f"columns 1,2 does nothing with {images}, a tree: leave it out" in capsys.readouterr().err
