"""Somebody else's numbering: every way of writing it, what it does to a set, and what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastanc.cli import main
from fastanc.parsing import parse
from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.index.class_map import read_class_map
from fastanc.pipelines.source_options import SourceOptions
from fastanc.training.assemble_input import open_sets
from support.images import class_folders, flat_folder
from support.tiny_run import LENETS, as_words

NATURAL = ["class_1", "class_2", "class_10"]
TEXTS = {
    "list.json": json.dumps(NATURAL),
    "numbers.json": json.dumps({"class_10": 2, "class_1": 0, "class_2": "1"}),
    "names.json": json.dumps({str(k): name for k, name in enumerate(NATURAL)}),
    "keras.json": json.dumps({str(k): [name, "some words"] for k, name in enumerate(NATURAL)}),
    "timm.txt": "\n".join(NATURAL) + "\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_way_of_writing_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name])
    assert read_class_map(tmp_path / name) == NATURAL


def test_kaggle_s_synset_file_names_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("n02102040 English springer\nn01440764 tench, Tinca tinca\n")
    assert read_class_map(path) == ["n02102040", "n01440764"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no classes"),
        ("[]", "names no classes"),
        ('["a", "a"]', "has the class 'a' twice"),
        ('["a", 1]', "has 1 in the place of a class's name"),
        ('{"a": 0, "b": 0}', "gives two classes one number"),
        ('{"a": 1, "b": 2}', "gives no class the number 0: number 2 classes from 0 to 1"),
        ('{"a": 0.5}', "gives the class 'a' the number 0.5"),
        ('{"a": true}', "gives the class 'a' the number true"),
        ('{"a": -1}', "gives the class 'a' the number -1"),
        ('{"a": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(ValueError, match=rf"map {words}"):
        read_class_map(tmp_path / "map")


def _counts(data: object) -> list[str]:
    return [data.classes[k] for k in data.labels]  # type: ignore[attr-defined]


def test_a_map_numbers_train_and_val_and_is_part_of_what_the_set_is(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", class_1=3, class_10=4, class_2=5)
    class_folders(tmp_path / "set" / "val", class_10=2)
    (tmp_path / "map.json").write_text(TEXTS["list.json"])
    plain, _ = open_splits(str(tmp_path / "set"))
    assert plain.classes == ["class_1", "class_10", "class_2"]
    words = {**LENETS, "data.name": str(tmp_path / "set"), "data.class_map": str(tmp_path / "map.json")}
    train, val = open_sets(parse(as_words(words)))
    assert train.classes == val.classes == NATURAL
    assert train.labels is not None
    assert train.labels.tolist() == [0] * 3 + [2] * 4 + [1] * 5
    assert _counts(train) == _counts(plain)  # other numbers, the same names
    assert train.describe()["fingerprint"] != plain.describe()["fingerprint"]
    (tmp_path / "more.json").write_text(json.dumps([*NATURAL, "class_11"]))
    options = SourceOptions(class_map=tmp_path / "more.json")
    more = open_dataset(str(tmp_path / "set"), "train", options=options)
    assert more.num_classes == 4
    assert more.describe()["fingerprint"] != train.describe()["fingerprint"]
    (tmp_path / "less.json").write_text(json.dumps(NATURAL[:2]))
    with pytest.raises(
        ValueError, match=r"train has images of the class 'class_10', which is none of the 2 in .*less"
    ):
        open_dataset(str(tmp_path / "set"), "train", options=SourceOptions(class_map=tmp_path / "less.json"))
    with pytest.raises(
        ValueError, match=r"data\.class_map does nothing with digits, which is no path: leave it out"
    ):
        open_dataset("digits", "train", options=options)


def test_an_index_made_with_a_map_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = class_folders(tmp_path / "set", class_1=3, class_10=4, class_2=5)
    (tmp_path / "map.txt").write_text(TEXTS["timm.txt"])
    assert main(["index", str(tree), "--class_map", str(tmp_path / "map.txt"), "--workers", "1"]) == 0
    assert "12 images, 3 classes" in capsys.readouterr().out
    assert open_dataset(str(tree), "train").classes == NATURAL
    (tmp_path / "map.txt").write_text("\n".join(NATURAL[::-1]))
    with pytest.raises(
        ValueError, match=r"map\.txt changed since .* run `fastanc index --refresh .* --class_map "
    ):
        open_dataset(str(tree), "train")


def test_another_set_to_validate_on_and_labels_for_both(tmp_path: Path) -> None:
    """data.val: its val split or all of it, nothing is held out; data.labels: also for val images without labels."""
    class_folders(tmp_path / "set", a=9, b=9)
    flat_folder(tmp_path / "other", 6)
    (tmp_path / "labels.csv").write_text("".join(f"{k:03d}.jpg,{'ab'[k % 2]}\n" for k in range(6)))
    fields = {"data.name": str(tmp_path / "set"), "data.val": str(tmp_path / "other")}
    train, val = open_sets(parse(as_words({**LENETS, **fields})))
    assert (train.num_images, val.num_images, val.labels) == (18, 6, None)
    flat_folder(tmp_path / "flat", 6)
    fields = {"data.name": str(tmp_path / "flat"), "data.val": str(tmp_path / "other")}
    labels = {"data.labels": str(tmp_path / "labels.csv")}
    train, val = open_sets(parse(as_words({**LENETS, **fields, **labels})))
    assert _counts(train) == _counts(val) == ["a", "b"] * 3
    with pytest.raises(FileNotFoundError, match=r"data\.val: .*gone does not exist"):
        parse(["--data.val", str(tmp_path / "gone")], front=True, images_only=True)
    with pytest.raises(FileNotFoundError, match=r"data\.labels: there is no file "):
        parse(["--data.labels", str(tmp_path / "gone")], front=True, images_only=True)
    assert build_index(tmp_path / "set", progress=False).classes == ["a", "b"]
