"""MDS shards are read in place; damaged ones end in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastanc.pipelines.catalogue import open_splits
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.index.sources import list_source
from fastanc.pipelines.source_options import SourceOptions
from support.formats import write_mds
from support.images import jpeg

FILES = {f"{c}/{k}.jpg": jpeg([n, k], (40 + k, 30)) for n, c in enumerate("ab") for k in range(6)}


def test_train_and_val_folders_of_shards_are_splits(tmp_path: Path) -> None:
    write_mds(tmp_path / "set" / "train", FILES, per_shard=5)
    write_mds(tmp_path / "set" / "val", dict(list(FILES.items())[:8]))
    train, val = open_splits(str(tmp_path / "set"))
    assert (train.num_images, val.num_images, train.classes, val.classes) == (12, 8, ["0", "1"], ["0", "1"])


def test_the_label_may_be_another_column_or_none(tmp_path: Path) -> None:
    source = write_mds(tmp_path / "mds", FILES)
    index = build_index(source, SourceOptions(columns="image,name"), progress=False)
    assert index.classes == sorted(FILES)
    (tmp_path / "mds.index").unlink()
    assert build_index(source, SourceOptions(columns="image"), progress=False).labels is None
    with pytest.raises(ValueError, match=r"has no column 'picture': it has image, label, name"):
        list_source(source, SourceOptions(columns="picture"))


def _changed(source: Path, **values: Any) -> None:
    index = json.loads((source / "index.json").read_text())
    for shard in index["shards"]:
        for key, value in values.items():
            (shard["raw_data"] if key in ("basename", "bytes") else shard)[key] = value
    (source / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"basename": "../evil.mds"}, r"index\.json is damaged .*'\.\./evil\.mds' is no file of the folder"),
        ({"bytes": 10**15}, r"shard\.00000\.mds is not the shard that index\.json says: get it again"),
        ({"bytes": -1}, r"index\.json is damaged .*: get it again"),
        ({"samples": 2**31}, r"shard\.00000\.mds is not the shard that index\.json says"),
        ({"samples": 3}, r"shard\.00000\.mds is not the shard that index\.json says"),
        (
            {"column_sizes": [None, 9, None]},
            r"shard\.00000\.mds is damaged, the sample at byte \d+ is cut off",
        ),
        ({"column_sizes": [None]}, r"the columns of shard\.00000\.mds differ in number"),
        ({"column_encodings": ["pil", "int", "str"]}, "image is encoded as pil, which is no image file"),
        (
            {"column_encodings": ["bytes", "pkl", "str"]},
            "label is encoded as pkl, and a label is an int or a str",
        ),
        ({"column_names": 7}, r"index\.json is damaged"),
    ],
    ids=str,
)
def test_what_index_json_says_is_compared_with_the_shards(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    source = write_mds(tmp_path / "mds", FILES)
    _changed(source, **values)
    with pytest.raises(ValueError, match=words):
        list_source(source)


def test_compressed_shards_say_the_command(tmp_path: Path) -> None:
    source = write_mds(tmp_path / "mds", FILES)
    _changed(source, compression="zstd")
    assert len(list_source(source).candidates) == 12  # the raw shards are there too
    (source / "shard.00000.mds").rename(source / "shard.00000.mds.zstd")
    with pytest.raises(
        ValueError, match=r"MDS shards that are compressed \(zstd\): `fastanc pack .*mds mds\.packed\.tar`"
    ):
        list_source(source)


def test_damaged_shards_never_end_in_a_foreign_error(tmp_path: Path) -> None:
    source = write_mds(tmp_path / "mds", FILES)
    path, rng = source / "shard.00000.mds", np.random.default_rng(0)
    whole = path.read_bytes()
    for k in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(64 if k % 2 else len(data)))] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if k % 5 == 0 else data)
        try:
            listing = list_source(source)
        except (ValueError, OSError) as error:
            assert str(source) in str(error)  # noqa: PT017  (many may pass)
        else:
            assert all(0 < c.offset <= c.offset + c.length <= len(data) for c in listing.candidates)
