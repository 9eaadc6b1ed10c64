"""The same images in every format, by its own library: the same pixels, labels and classes, read in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.index.build import Index, build_index
from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop
from support.formats import FORMATS, NUMBERS, write_mds
from support.images import encoded, jpeg, picture

FILES = {f"{c}/{c}{k:02d}.jpg": jpeg([n, k], (60 + k, 50)) for n, c in enumerate("abc") for k in range(9)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))


def _stored(index: Index) -> dict[bytes, int | None]:
    """What the index says: the bytes of each image -> its label."""
    labels = [None] * len(index) if index.labels is None else index.labels.tolist()
    return {read_range(*place): label for place, label in zip(index.places(range(len(index))), labels)}


def _pixels(index: Index) -> dict[bytes, torch.Tensor]:
    data = JpegSet("set", index, (0.0,), (1.0,))
    found = {}
    for batch in data.batches(evaluation_picks(len(index), 16), CentreCrop(32, 40)):
        for k, image in zip(batch.index.tolist(), batch.images):
            found[read_range(*index.places([k])[0])] = image.clone()
    return found


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_images_labels_classes_and_pixels_in_place(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "set").mkdir()
    source = FORMATS[name](tmp_path / "set", FILES)
    before = _bytes_below(tmp_path / "set")
    index = build_index(source, workers=1, progress=False)
    after = _bytes_below(tmp_path / "set")
    assert {k: v for k, v in after.items() if not k.endswith(".index")} == before  # no byte but the index's
    assert len(after) == len(before) + 1

    assert index.classes == (["0", "1", "2"] if name in NUMBERS else ["a", "b", "c"])
    assert _stored(index) == {data: "abc".index(k[0]) for k, data in FILES.items()}
    plain = build_index(FORMATS["tree"](tmp_path / "plain", FILES), workers=1, progress=False)
    wanted, found = _pixels(plain), _pixels(index)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[data], wanted[data]) for data in wanted)

    again = open_dataset(str(source), "train", val_share=0.1)  # found, compared with its source, and parted
    val = open_dataset(str(source), "val", val_share=0.1)
    assert isinstance(again, JpegSet)
    assert isinstance(val, JpegSet)
    assert (again.num_images + val.num_images, again.classes) == (len(FILES), index.classes)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "tar of tars"])
def test_a_source_that_changed_is_refused_with_the_command_that_mends_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    source = FORMATS[name](tmp_path / "set", FILES)
    open_dataset(str(source), "train")
    fewer = dict(list(FILES.items())[:-1])
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file() and not path.name.endswith(".index"):
            path.unlink()
    assert FORMATS[name](tmp_path / "set", fewer) == source
    with pytest.raises(ValueError, match=r"run `fastanc index --refresh "):
        open_dataset(str(source), "train")


def test_the_shards_made_here_are_those_of_mosaicml_streaming(tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    columns = {"image": "bytes", "label": "int", "name": "str"}
    limit = 1 << 26
    with streaming.MDSWriter(out=str(tmp_path / "theirs"), columns=columns, size_limit=limit) as sink:
        for name, data in FILES.items():
            sink.write({"image": data, "label": "abc".index(name[0]), "name": name})
    write_mds(tmp_path / "ours", FILES, per_shard=len(FILES))
    assert (
        _bytes_below(tmp_path / "ours")["shard.00000.mds"]
        == _bytes_below(tmp_path / "theirs")["shard.00000.mds"]
    )


def test_pngs_and_webps_of_a_format_are_images_too(tmp_path: Path) -> None:
    files = {
        "a/x.png": encoded(picture(1), "PNG"),
        "b/y.webp": encoded(picture(2), "WEBP"),
        "b/z.jpg": jpeg(3),
    }
    for name, write in FORMATS.items():
        if name in ("webdataset", "datasets"):  # whose names say .jpg; whose Image feature needs no more
            continue
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        index = build_index(write(folder, files), workers=1, progress=False)
        assert {data for data in _stored(index)} == set(files.values()), name
        assert np.bincount(np.asarray(index.labels)).tolist() == [1, 2], name
