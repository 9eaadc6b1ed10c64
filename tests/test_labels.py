"""Files of labels as people write them: nothing of a line is dropped, what cannot be meant is refused by its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines.index.build import build_index, summary
from fastanc.pipelines.index.labels import read_labels, read_synsets
from fastanc.pipelines.source_options import SourceOptions
from support.images import jpeg, put
from support.tars import write_tar

NAMES = ["1.jpg", "2.jpg", "3.jpg", "my cat 4.jpg"]
CLASSES = ["golden retriever", "golden eagle", "gas pump", "gas mask"]


def read(folder: Path, text: str | bytes, names: list[str] = NAMES) -> list[str | int]:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path, names)[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "head", [None, ["image", "label"], ["File Name", "Class"], ["image_id", "species"], ["ID", "TARGET"]]
)
def test_tables_as_the_standard_librarys_csv_writes_them(
    tmp_path: Path, delimiter: str, end: str, mark: str, head: list[str] | None
) -> None:
    classes = ['a "quoted" one', f"with{delimiter}it", "two words", "ümläut"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([head] if head else [])
    writer.writerows(zip(NAMES, classes))
    assert read(tmp_path, mark + text.getvalue()) == classes
    assert read(tmp_path, ("\ufeff" + text.getvalue()).encode("utf-16-le")) == classes


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{n} {c}\n" for n, c in zip(NAMES, CLASSES)),
        "file label\n" + "".join(f"{n}   {c}\n\n" for n, c in zip(NAMES, CLASSES)),
        "".join(f"{n[:-4]} {c}\n" for n, c in zip(NAMES, CLASSES)),
        "".join(f"mv '{n}' '{c}/'\n" for n, c in zip(NAMES, CLASSES)),
        "".join(f"{c}\n" for c in CLASSES),
        "label\n" + "".join(f"{c}\n" for c in CLASSES),
        "weight,label,path\n" + "".join(f"1,{c},data/train/{n}\n" for n, c in zip(NAMES, CLASSES)),
        "".join(f"C:\\set\\{n},{c}\n" for n, c in zip(NAMES, CLASSES)),
        "id,breed\n" + "".join(f"{n[:-4]},{c}\n" for n, c in reversed(list(zip(NAMES, CLASSES)))),
    ],
)
def test_classes_of_several_words_are_whole(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == CLASSES


@pytest.mark.parametrize("case", [str, str.upper, str.title, str.capitalize])
@pytest.mark.parametrize(
    ("image", "label"),
    [("path", "label"), ("filename", "class"), ("image-name", "class.label"), ("image id", "labelName")],
)
def test_headers_in_any_case(tmp_path: Path, case: Callable[[str], str], image: str, label: str) -> None:
    """Among other columns, so that only their names tell; the class column stands first."""
    text = f"fold,{case(label)},{case(image)}\n"
    assert read(tmp_path, text + "".join(f"7,{c},{n}\n" for n, c in zip(NAMES, CLASSES))) == CLASSES
    assert read(tmp_path, f"{case(label)}\n" + "".join(f"{c}\n" for c in CLASSES)) == CLASSES


def test_class_numbers_are_numbers_where_all_are(tmp_path: Path) -> None:
    assert read(tmp_path, "1,3\n2,2\n3,10\nmy cat 4,1\n") == [3, 2, 10, 1]
    assert read(tmp_path, "1,3.0\n2,2.0\n3,10.0\nmy cat 4,1.0\n") == [3, 2, 10, 1]  # as pandas writes them
    assert read(tmp_path, "1,3\n2,2\n3,A\nmy cat 4,1\n") == ["3", "2", "A", "1"]
    assert read(tmp_path, "1,²\n2,2\n3,1\nmy cat 4,1\n") == ["²", "2", "1", "1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "1.jpg,a, b\n2.jpg,c\n3.jpg,c\nmy cat 4.jpg,c\n",
            "line 2 has 2 columns and line 1 has 3: put a word that",
        ),
        ("1.jpg,a\n2.jpg,\n3.jpg,c\nmy cat 4.jpg,c\n", r"line 2 has no class for 2\.jpg"),
        (
            "1.jpg,a\n1.jpg,b\n2.jpg,c\n3.jpg,c\nmy cat 4.jpg,c\n",
            r"calls 1\.jpg 'a' in line 1 and 'b' in line 2",
        ),
        ("x/1.jpg,a\ny/1.jpg,b\n2.jpg,c\n3.jpg,c\nmy cat 4.jpg,c\n", r"several lines for 1\.jpg"),
        ("1.jpg,a\n2.jpg,b\n", r"no label for 3\.jpg .2 of 4 missing"),
        (
            "image,MEL,NV\n1.jpg,1,0\n2.jpg,0,1\n3.jpg,0,1\nmy cat 4.jpg,0,1\n",
            "has 3 columns, of which its first line",
        ),
        ("1.jpg a\n2.jpg\n3.jpg c\nmy cat 4.jpg b", r"line 2 .2\.jpg. is not NAME CLASS"),
        ('1.jpg,"a\n2.jpg,b\n3.jpg,c\nmy cat 4.jpg,d\n', "no row of a table .*mend its quotes"),
        ("a\nb\n", "2 labels for 4 images"),
        ("", "is empty"),
        (b"\x00\x01\xff" * 9, "is not a text in UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"labels\.csv.*{words}"):
        read(tmp_path, text)


def test_lines_of_other_images_are_said(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("1,a\n2,a\n3,b\nmy cat 4,b\n8,b\n9,b\n")
    assert read_labels(path, NAMES)[1] == [f"2 of 6 lines of {path} name no image of the set, first ['8']"]
    source = put(tmp_path / "flat", {name: jpeg(k) for k, name in enumerate(NAMES)})
    index = build_index(source, SourceOptions(labels=path), progress=False)
    assert f"2 of 6 lines of {path}" in summary(index)


def test_folders_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg"]
    assert read(tmp_path, "set/b/1.jpg,x\nset/a/1.jpg,y\n", names) == ["y", "x"]
    with pytest.raises(ValueError, match=r"no label for b/1\.jpg .1 of 2"):
        read(tmp_path, "a/1.jpg,x\n", names)
    source = put(tmp_path / "tree", {name: jpeg(k) for k, name in enumerate(names)})
    (tmp_path / "labels.csv").write_text("a/1.jpg,dog\nb/1.jpg,cat\n")
    index = build_index(
        source, SourceOptions(labels=tmp_path / "labels.csv"), progress=False
    )  # folders are no classes then
    assert (index.classes, np.asarray(index.labels).tolist()) == (["cat", "dog"], [1, 0])


def test_numbers_from_one_make_no_empty_class_and_gaps_are_named(tmp_path: Path) -> None:
    source = put(tmp_path / "flat", {name: jpeg(k) for k, name in enumerate(NAMES)})
    for text, classes, numbers, said in (
        ("1,1\n2,2\n3,3\nmy cat 4,1\n", ["1", "2", "3"], [0, 1, 2, 0], ""),
        ("1,0\n2,2\n3,2\nmy cat 4,2\n", ["0", "1", "2"], [0, 2, 2, 2], "1 of 3 classes has no image: 1"),
    ):
        (tmp_path / "l.csv").write_text(text)
        index = build_index(source, SourceOptions(labels=tmp_path / "l.csv"), progress=False)
        assert (index.classes, np.asarray(index.labels).tolist()) == (classes, numbers)
        assert said in summary(index)
    (tmp_path / "l.csv").write_text("1,1\n2,2\n3,999999999999\nmy cat 4,1\n")
    with pytest.raises(ValueError, match="the label 999999999999: that is no class number"):
        build_index(source, SourceOptions(labels=tmp_path / "l.csv"), progress=False)


def test_random_bytes_never_end_in_a_foreign_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = "image,label\n" + "".join(f"{n},{c}\n" for n, c in zip(NAMES, CLASSES))
    for k in range(1500):
        data = bytearray(
            whole.encode()
            if k % 3
            else rng.choice(list(b"a1.,;\t\n \"'\\mv\xff"), 60).astype(np.uint8).tobytes()
        )
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        (tmp_path / "labels.csv").write_bytes(data)
        for reader in (lambda path: read_labels(path, NAMES), read_synsets):
            try:
                reader(tmp_path / "labels.csv")
            except ValueError as error:
                assert str(error).startswith(str(tmp_path / "labels.csv"))  # noqa: PT017  (many may pass)


@pytest.mark.parametrize("mark", ["|", ":"])
def test_another_delimiter_is_refused_and_not_a_class(tmp_path: Path, mark: str) -> None:
    with pytest.raises(ValueError, match="begin with an image's name: put a comma"):
        read(tmp_path, "".join(f"{name}{mark}cat\n" for name in NAMES[:3]), NAMES[:3])


PANDAS = [
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
]
PANDAS += ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
"""What pandas' documentation lists as `na_values`."""


@pytest.mark.parametrize("word", [*PANDAS, "none", "NONE", "NaT", "-1", "-1.0"])
def test_a_missing_class_is_no_class(tmp_path: Path, word: str) -> None:
    for one, three in (("cat", "dog"), ("0", "1")):
        for head, line in (("", 2), ("Path,Label\n", 3)):
            with pytest.raises(
                ValueError, match=rf"labels\.csv, line {line} has no class for 2\.jpg .*fill it in"
            ):
                read(tmp_path, f"{head}1.jpg,{one}\n2.jpg,{word}\n3.jpg,{three}\n", NAMES[:3])
        if word and "N/A N" not in word:
            with pytest.raises(ValueError, match=r"line 2 has no class for 2\.jpg"):
                read(tmp_path, f"1.jpg {one}\n2.jpg {word}\n3.jpg {three}\n", NAMES[:3])
            with pytest.raises(ValueError, match=r"line 2 has no class \(it says .*, 1 of 3 lines"):
                read(tmp_path, f"{one}\n{word}\n{three}\n", NAMES[:3])
    with pytest.raises(ValueError, match="has no class in any line: give no file of labels"):
        read(tmp_path, "".join(f"{name},{word}\n" for name in NAMES[:3]), NAMES[:3])


def test_a_class_number_below_zero_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "flat", {name: jpeg(k) for k, name in enumerate(NAMES)})
    (tmp_path / "l.csv").write_text("1,0\n2,-2\n3,1\nmy cat 4,1\n")
    with pytest.raises(ValueError, match="has the label -2: class numbers begin at 0"):
        build_index(source, SourceOptions(labels=tmp_path / "l.csv"), progress=False)


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_a_shards_missing_label_is_no_class(tmp_path: Path, kind: str) -> None:
    """One of two is left out with its reason; where all are missing, the set is unlabelled."""
    words = ["None", "-1", "nan"] if kind == "cls" else ["null", "-1", "NaN", '"None"']

    def shard(name: str, labels: list[str]) -> Path:
        members = {}
        for k, label in enumerate(labels):
            text = label if kind == "cls" else f'{{"label": {label}}}'
            members |= {f"{k}.jpg": jpeg(k), f"{k}.{kind}": text.encode()}
        return write_tar(tmp_path / name, members)

    for k, word in enumerate(words):
        part = build_index(shard(f"part{k}.tar", ["0", word, "1"]), progress=False)
        assert (part.classes, part.names(), part.rejected) == (["0", "1"], ["0.jpg", "2.jpg"], 1)
        none = build_index(shard(f"none{k}.tar", [word, word]), progress=False)
        assert (none.labels, len(none), none.rejected) == (None, 2, 0)
