"""A file of sources: the images, pixels, labels and classes of one folder of all of them, no image read again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastanc.cli import main
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.index import build
from fastanc.pipelines.index.build import Index, build_index, index_path, open_index, summary
from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop
from support.formats import FORMATS
from support.images import jpeg
from support.tars import write_tar

# Of different numbers of pictures and classes; c is in two, d in one.
PARTS = {
    "tree": {f"{c}/{c}{k}.jpg": jpeg([n, k], (60 + k, 50)) for n, c in enumerate("ac") for k in range(5)},
    "tar": {f"{c}/{c}{k}.jpg": jpeg([n + 5, k], (61, 50 + k)) for n, c in enumerate("bcd") for k in range(4)},
    "parquet": {
        f"{c}/{c}{k}.jpg": jpeg([n + 9, k], (55, 62 + k)) for n, c in enumerate("b") for k in range(3)
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    if not _has_pyarrow():
        pytest.skip("parquet is read with pip install 'fastanc[parquet]'")


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def sources(folder: Path, kinds: dict[str, dict[str, bytes]] | None = None) -> Path:
    """Write the parts, each in its format, and return the file that names them."""
    lines = ["# three kinds", ""]
    for name, files in (PARTS if kinds is None else kinds).items():
        (folder / "set" / name).mkdir(parents=True)
        written = FORMATS[name.partition(" ")[0]](folder / "set" / name, files)
        lines.append(str(written.relative_to(folder / "set")))
    (folder / "set" / "all.parts").write_text("\n".join(lines) + "\n")
    return folder / "set" / "all.parts"


def pixels(data: JpegSet) -> dict[bytes, torch.Tensor]:
    found = {}
    for batch in data.batches(evaluation_picks(data.num_images, 16), CentreCrop(32, 40)):
        for k, image in zip(batch.index.tolist(), batch.images):
            found[read_range(*data.index.places([k])[0])] = image.clone()
    return found


@pytest.mark.parametrize(
    "kinds", [("tree", "tar", "parquet"), ("tar", "parquet"), ("tree",), ("tar",)], ids=str
)
def test_parts_are_the_images_of_one_folder(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    chosen = {kind: PARTS[kind] for kind in kinds}
    file = sources(tmp_path, chosen)
    whole = {f"{name[0]}/{kind} {name[2:]}": data for kind in kinds for name, data in PARTS[kind].items()}
    (tmp_path / "one").mkdir()
    one = JpegSet(
        "one",
        build_index(FORMATS["tree"](tmp_path / "one", whole), workers=1, progress=False),
        (0.0,),
        (1.0,),
    )
    index = open_index(file)
    assert index.classes == one.classes
    label = {
        read_range(*place): k for place, k in zip(index.places(range(len(index))), index.labels.tolist())
    }
    assert label == {data: one.classes.index(name[0]) for name, data in whole.items()}
    assert len(set(index.names())) == len(index), "a name is one image's"
    wanted, found = pixels(one), pixels(JpegSet("parts", index, (0.0,), (1.0,)))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[data], wanted[data]) for data in wanted)


def test_no_image_is_read_again_and_what_is_written_is_one_mapped_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sources(tmp_path)
    for name in ("tree", "tar", "parquet"):
        part = tmp_path / "set" / file.read_text().splitlines()[2:][list(PARTS).index(name)]
        build_index(part, workers=1, progress=False)
    monkeypatch.setattr(build, "_look_at_all", lambda *_: pytest.fail("an image was read"))
    made = open_index(file)
    again = open_index(file)
    assert isinstance(again.sizes.base, np.ndarray)
    assert again.fingerprint == made.fingerprint
    assert again.names() == made.names()
    assert np.array_equal(again.lengths, made.lengths)


def test_a_part_that_changed_went_or_came_is_one_sentence(tmp_path: Path) -> None:
    file = sources(tmp_path)
    open_index(file)
    tree = next(path.parent.parent for path in (tmp_path / "set" / "tree").rglob("a0.jpg"))
    (tree / "a" / "new.jpg").write_bytes(jpeg(77))
    with pytest.raises(
        ValueError,
        match=r"a/new.jpg was added since the set was indexed: run `fastanc index --refresh .*tree",
    ):
        open_index(file)
    build_index(tree, workers=1, progress=False)
    with pytest.raises(
        ValueError,
        match=r"all.parts: its parts are not those that were joined: run `fastanc index .*all.parts`",
    ):
        open_index(file)
    assert main(["index", str(file)]) == 0
    assert len(open_index(file)) == sum(map(len, PARTS.values())) + 1
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="its parts are not those that were joined"):
        open_index(file)
    shutil.rmtree(tree)
    with pytest.raises(
        FileNotFoundError, match=r"all.parts, line 3: .* does not exist: correct it, or take it out"
    ):
        open_index(file)


def test_moved_together_they_are_the_same_set(tmp_path: Path) -> None:
    file = sources(tmp_path)
    before = open_index(file)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "deeper"
    os.rename(file.parent, moved)
    after = open_index(moved / "all.parts")
    assert after.fingerprint == before.fingerprint
    assert {Path(path).is_relative_to(moved) for path, _, _ in after.places(range(len(after)))} == {True}
    assert all(len(read_range(*place)) for place in after.places(range(len(after))))


def test_a_list_in_no_text_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.parts").write_bytes(b"\xff\xfe\x00a")
    assert main(["index", str(tmp_path / "all.parts")]) == 2
    assert (
        capsys.readouterr().err == f"fastanc: {tmp_path / 'all.parts'} is no text in UTF-8: save it as one\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no source: write the path of one on each line"),
        ("# nothing\n\n", "names no source"),
        ("nowhere\n", "line 1: nowhere does not exist"),
        ("tree/../tree\n./tree\n", r"line 2: \./tree is named twice"),
        ("https://host/set.tar\n", "is no path of this machine: copy it here"),
        ("all.parts\n", "is a list of parts itself: name its parts"),
    ],
)
def test_a_wrong_list_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = sources(tmp_path, {"tree": PARTS["tree"]})
    file.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        open_index(file)
    assert not index_path(file).exists()


def test_options_belong_to_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sources(tmp_path, {"tree": PARTS["tree"]})
    (tmp_path / "labels.csv").write_text("image,label\n")
    assert main(["index", str(file), "--labels", str(tmp_path / "labels.csv")]) == 2
    assert (
        "names several sources: index each of them with the options that it needs" in capsys.readouterr().err
    )


def test_parts_with_and_without_labels_do_not_mix(tmp_path: Path) -> None:
    file = sources(tmp_path, {"tree": PARTS["tree"]})
    (file.parent / "flat").mkdir()
    (file.parent / "flat" / "x.jpg").write_bytes(jpeg(5))
    file.write_text(file.read_text() + "flat\n")
    with pytest.raises(ValueError, match="one has labels and the other none"):
        open_index(file)


def test_an_order_of_classes_of_its_own_is_kept_or_refused(tmp_path: Path) -> None:
    file = sources(tmp_path, {"tree": PARTS["tree"], "tree two": PARTS["tree"], "tar": PARTS["tar"]})
    names = file.read_text().splitlines()[2:]
    (tmp_path / "map.json").write_text('["c", "a"]')
    for name in names[:2]:
        place = file.parent / name
        assert main(["index", str(place), "--class_map", str(tmp_path / "map.json")]) == 0
    file.write_text("\n".join(names[:2]))
    index = open_index(file)
    assert index.classes == ["c", "a"], "all parts have it"
    assert any("10 images of one part are in another one, too" in remark for remark in index.remarks)
    file.write_text("\n".join(names))
    with pytest.raises(ValueError, match="its classes in an order of its own"):
        build_index(file)


def test_numbers_are_put_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part, labels in (("one", (10, 2)), ("two", (3, 10))):
        lines = ["image,label"]
        for k, label in enumerate(labels):
            (tmp_path / "set" / f"{part}{k}.jpg").write_bytes(jpeg([k, label]))
            lines.append(f"{part}{k}.jpg,{label}")
        (tmp_path / "set" / f"{part}.csv").write_text("\n".join(lines))
    (tmp_path / "set" / "all.parts").write_text("one.csv\ntwo.csv\n")
    index = open_index(tmp_path / "set" / "all.parts")
    assert [index.classes[k] for k in index.labels] == ["10", "2", "3", "10"]
    assert index.classes == sorted(index.classes, key=int)


def test_it_is_trained_on_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sources(tmp_path)
    words = ["--data.name", str(file), "--data.image_px", "32", "--data.resize_px", "36", "--data.batch", "8"]
    words += ["--data.val_share", "0.3", "--student.name", "lenet5", "--method.type", "supervised"]
    words += ["--run.max_steps", "2", "--run.out", str(tmp_path), "--run.name", "x", "--recipe", "own_data"]
    assert main(["train", *words, "--schedule.warmup_epochs", "0"]) == 0
    told = capsys.readouterr()
    assert "of 4 classes" in told.out + told.err
    train, val = (open_dataset(str(file), split, val_share=0.3) for split in ("train", "val"))
    assert train.num_images + val.num_images == sum(map(len, PARTS.values()))
    assert (tmp_path / "x" / "student.safetensors").is_file()


def test_a_folder_of_two_lists_has_both_splits(tmp_path: Path) -> None:
    file = sources(tmp_path)
    lines = file.read_text().splitlines()[2:]
    file.rename(file.with_name("old.txt"))
    (file.parent / "train.parts").write_text("\n".join(lines[:2]))
    (file.parent / "val.parts").write_text(lines[2])
    train, val = (open_dataset(str(file.parent), split) for split in ("train", "val"))
    assert (train.num_images, val.num_images) == (
        len(PARTS["tree"]) + len(PARTS["tar"]),
        len(PARTS["parquet"]),
    )


def test_bytes_that_lie_elsewhere_in_a_part_are_found_again(tmp_path: Path) -> None:
    """A tar that was packed anew has the same images, so its fingerprint says nothing of it."""
    file = sources(tmp_path)
    before = open_index(file).fingerprint
    tar = next((tmp_path / "set" / "tar").rglob("*.tar"))
    write_tar(tar, dict(reversed(PARTS["tar"].items())))
    index_path(tar).unlink()
    open_index(tar)
    with pytest.raises(ValueError, match="its parts are not those that were joined"):
        open_index(file)
    index = build_index(file)
    assert index.fingerprint == before, "a cache of it is still right"
    assert right(index)


def right(index: Index) -> bool:
    """Whether the index finds the bytes that it was made of."""
    places = index.places(range(len(index)))
    return all(zlib.crc32(read_range(*place)) == crc for place, crc in zip(places, index.crc32.tolist()))


def test_parts_beside_the_list_move_with_it_and_may_be_called_otherwise(tmp_path: Path) -> None:
    file = sources(tmp_path)
    lines = file.read_text().splitlines()[2:]
    (tmp_path / "set" / "lists").mkdir()
    file = tmp_path / "set" / "lists" / "all.parts"
    file.write_text("\n".join(f"../{line}" for line in lines))
    before = open_index(file)
    os.rename(tmp_path / "set", tmp_path / "gone")
    file = tmp_path / "gone" / "lists" / "all.parts"
    after = open_index(file)
    assert right(after)
    assert after.fingerprint == before.fingerprint
    os.rename(tmp_path / "gone" / lines[0], tmp_path / "gone" / "other")
    file.write_text("\n".join(["../other", *(f"../{line}" for line in lines[1:])]))
    renamed = build_index(file)
    assert right(renamed)
    assert renamed.fingerprint == before.fingerprint, "the teacher's rows are still those of its images"


def test_parts_in_each_other_have_names_of_their_own(tmp_path: Path) -> None:
    file = sources(tmp_path, {"tree": PARTS["tree"], "tree two": PARTS["tree"]})
    (tree, _) = file.read_text().splitlines()[2:]
    file.write_text(f"{tree}\n{tree}/a/..\n")
    with pytest.raises(ValueError, match="is named twice"):
        open_index(file)
    (file.parent / "flat").mkdir()
    shutil.copytree(file.parent / tree / "a", file.parent / "flat" / "deeper")
    file.write_text("flat\nflat/deeper\n")
    for part in ("flat", "flat/deeper"):
        (file.parent / "labels.csv").write_text("".join(f"a{k}.jpg,x\n" for k in range(5)))
        assert main(["index", str(file.parent / part), "--labels", str(file.parent / "labels.csv")]) == 0
    index = open_index(file)
    assert (len(index), len(set(index.names())), right(index)) == (10, 10, True)


def test_decoding_all_is_asked_of_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sources(tmp_path)
    assert main(["index", "--full", str(file)]) == 2
    assert "index each of them with --full" in capsys.readouterr().err


def test_processes_that_find_no_index_make_one(tmp_path: Path) -> None:
    file = sources(tmp_path)
    code = "from pathlib import Path; from fastanc.pipelines.index.build import open_index; import sys;"
    code += "print(open_index(Path(sys.argv[1])).fingerprint)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    said = {one.communicate(timeout=300)[0] for one in started}
    assert said == {f"{open_index(file).fingerprint}\n"}
    assert {path.name for path in file.parent.iterdir() if path.is_file()} == {"all.parts", "all.parts.index"}


def test_a_summary_adds_up(tmp_path: Path) -> None:
    file = sources(tmp_path)
    tar = next((tmp_path / "set" / "tree").rglob("a0.jpg")).parent
    (tar / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    index = open_index(file)
    assert f"{sum(map(len, PARTS.values()))} images, 4 classes" in summary(index)
    assert index.rejected == 1
    assert "1 file left out, listed beside each part" in summary(index)
