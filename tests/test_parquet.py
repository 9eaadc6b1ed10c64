"""Parquet is read in place: every value where pyarrow finds it, by every way of writing; damage is one sentence."""

from __future__ import annotations

import io
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.index.build import build_index, rejected_path
from fastanc.pipelines.index.sources import list_source
from fastanc.pipelines.index.sources.parquet_pages import Damage, byte_arrays, pages
from fastanc.pipelines.source_options import SourceOptions
from support.formats import parquet_table, write_parquet
from support.images import jpeg

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FILES = {f"{c}/{c}{k}.jpg": jpeg([n, k], (40 + k, 30)) for n, c in enumerate("ab") for k in range(30)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))


def _values(path: Path, column: int = 0) -> list[bytes | None]:
    """The values of a column of byte arrays, by our page reader."""
    data, found = path.read_bytes(), list[bytes | None]()
    with open(path, "rb") as raw, pq.ParquetFile(path) as file:
        read = partial(os.pread, raw.fileno())
        for group in range(file.metadata.num_row_groups):
            chunk = file.metadata.row_group(group).column(column)
            start = chunk.data_page_offset
            for page in pages(read, start, start + chunk.total_compressed_size, chunk.num_values):
                for place in byte_arrays(read, page, file.schema.column(column).max_definition_level):
                    found.append(None if place is None else data[place[0] : place[0] + place[1]])
    return found


@pytest.mark.parametrize("nulls", ["none", "some", "runs", "all"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("page", [100, 5000, 1 << 20])
def test_every_value_is_where_pyarrow_finds_it(tmp_path: Path, nulls: str, version: str, page: int) -> None:
    rng = np.random.default_rng(page)
    blobs: list[bytes | None] = [rng.bytes(int(rng.integers(0, 300))) for _ in range(700)]
    if nulls == "some":
        blobs = [None if rng.random() < 0.3 else blob for blob in blobs]
    elif nulls == "runs":
        blobs = [None if k // 50 % 2 else blob for k, blob in enumerate(blobs)]
    elif nulls == "all":
        blobs = [None] * len(blobs)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    struct = pa.array([None if b is None and k % 2 else {"bytes": b} for k, b in enumerate(blobs)], kind)
    for name, column in {"flat": pa.array(blobs, pa.binary()), "struct": struct}.items():
        path = tmp_path / f"{name}.parquet"
        options = {"data_page_version": version, "data_page_size": page, "write_batch_size": 16}
        pq.write_table(
            pa.table({"image": column}), path, compression="NONE", use_dictionary=False, row_group_size=300,
            write_page_index=True, write_page_checksum=True, **options,
        )  # fmt: skip
        assert _values(path) == blobs


def test_a_column_that_may_not_be_null_has_no_levels(tmp_path: Path) -> None:
    blobs = [b"a" * k for k in range(50)]
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    for version in ("1.0", "2.0"):
        pq.write_table(
            pa.table({"image": blobs}, schema=schema), tmp_path / "x.parquet", compression="NONE",
            use_dictionary=False, data_page_version=version,
        )  # fmt: skip
        assert _values(tmp_path / "x.parquet") == blobs


def test_the_hub_s_layout_has_splits_by_the_shards_names(tmp_path: Path) -> None:
    """ILSVRC/imagenet-1k: data/{train,validation,test}-00000-of-00294.parquet, in a clone of the repository."""
    data = tmp_path / "imagenet-1k" / "data"
    data.mkdir(parents=True)
    (tmp_path / "imagenet-1k" / "README.md").write_text("words")
    names = sorted(FILES)
    for split, part in (
        ("train", names[:20] + names[30:50]),
        ("validation", names[20:25]),
        ("test", names[25:30]),
    ):
        for k in range(2):
            files = {name: FILES[name] for name in part[k::2]}
            write_parquet(data / f"{split}-{k:05d}-of-00002.parquet", files, classes="ab")
    train, val = open_splits(str(tmp_path / "imagenet-1k"))
    assert (train.num_images, val.num_images, train.classes, val.classes) == (40, 5, ["a", "b"], ["a", "b"])
    assert sorted(p.name for p in data.glob("*.index")) == [
        "train-all.parquet.index",
        "validation-all.parquet.index",
    ]
    assert open_dataset(str(data / "test-*.parquet"), "train", val_share=0.5).num_images < 5
    with pytest.raises(
        ValueError, match=r"data holds the shards of the splits test-\*\.parquet, train-\*\.parquet, val"
    ):
        build_index(data, progress=False)


def test_numbers_keep_the_order_of_the_classlabel_and_equal_names_stay_apart(tmp_path: Path) -> None:
    files = {f"{c}/{k}.jpg": jpeg([k]) for k, c in enumerate(["zebra", "crane", "ant"])}
    path = write_parquet(tmp_path / "x.parquet", files, classes=["zebra", "crane", "ant"])
    index = build_index(path, progress=False)
    assert index.classes == ["zebra", "crane", "ant"]
    table = parquet_table(files, classes=["zebra", "crane", "ant"])
    said = json.loads(table.schema.metadata[b"huggingface"])  # type: ignore[attr-defined]
    said["info"]["features"]["label"]["names"] = ["crane", "crane", "ant"]
    table = table.replace_schema_metadata({"huggingface": json.dumps(said)})  # type: ignore[attr-defined]
    pq.write_table(table, path, compression="NONE", use_dictionary=False)
    assert list_source(path).classes == ["crane", "crane (1)", "ant"]


def test_plain_numbers_names_and_no_labels(tmp_path: Path) -> None:
    names = sorted(FILES)
    blobs = pa.array([FILES[name] for name in names], pa.binary())
    for label, classes in {
        "number": (pa.array([int(n[0] == "b") for n in names], pa.uint8()), ["0", "1"]),
        "name": (pa.array([n[0] for n in names]), ["a", "b"]),
        "dictionary": (pa.array([n[0] for n in names]).dictionary_encode(), ["a", "b"]),
        "missing": (pa.array([-1] * len(names)), []),
        "none": (None, []),
    }.values():
        columns = {"img": blobs} if label is None else {"img": blobs, "target": label}
        path = tmp_path / "x.parquet"
        pq.write_table(
            pa.table(columns), path, compression={"img": "NONE", "target": "ZSTD"}, use_dictionary=["target"]
        )
        (tmp_path / "x.parquet.index").unlink(missing_ok=True)
        index = build_index(path, progress=False)
        assert index.classes == classes
        assert (index.labels is None) == (not classes)


def test_null_images_and_labels_are_left_out_by_their_row(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": jpeg(k), "path": f"../x/{k}.jpg"} for k in range(5)]
    rows = pa.array([images[0], None, {"bytes": None, "path": "x"}, images[3], images[4]], kind)
    table = pa.table({"image": rows, "label": pa.array([0, 1, 1, None, 1])})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, compression="NONE", use_dictionary=False)
    index = build_index(path, progress=False)
    assert index.names() == ["x/0000000-0.jpg", "x/0000004-4.jpg"]
    assert rejected_path(tmp_path / "x.parquet.index").read_text().splitlines()[1:] == [
        "x/0000001\tno image (null)",
        "x/0000002-x\tno image (null)",
        "x/0000003-3.jpg\tno label",
    ]


def _write(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **{"compression": "NONE", "use_dictionary": False, **options})


BLOBS = [jpeg(k) for k in range(4)]
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "snappy": (
        {"image": BLOBS},
        {"compression": "SNAPPY"},
        r"parquet whose images are compressed \(snappy\): `fastanc pack ",
    ),
    "zstd": (
        {"image": BLOBS},
        {"compression": "ZSTD"},
        r"compressed \(zstd\): `fastanc pack \S+x\.parquet x\.packed\.tar` makes",
    ),
    "dictionary": ({"image": BLOBS * 3}, {"use_dictionary": True}, "dictionary-encoded: `fastanc pack "),
    "delta": (
        {"image": BLOBS},
        {"column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}},
        "in encoding 6: `fastanc pack ",
    ),
    "no images": (
        {"text": ["a", "b"], "label": [1, 2]},
        {},
        "has no column of images, as bytes: it has text, label",
    ),
    "strings": ({"image": ["a.jpg"], "label": [1]}, {}, "has no column of images, as bytes"),
    "several": (
        {"one": BLOBS, "two": BLOBS},
        {},
        r"several columns of bytes \(one, two\): name one by --columns",
    ),
    "lists": ({"image": [[b] for b in BLOBS]}, {}, "has no column of images, as bytes"),
    "floats": (
        {"image": BLOBS, "label": [0.5] * 4},
        {},
        "the column label is double, and a label is a number or a name",
    ),
    "many labels": (
        {"image": BLOBS, "label": [[1]] * 4},
        {},
        "the column label is list<.*>, and a label is a number",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_in_place_is_one_sentence(tmp_path: Path, kind: str) -> None:
    columns, options, words = REFUSED[kind]
    _write(tmp_path / "x.parquet", columns, **options)
    with pytest.raises(ValueError, match=rf"x\.parquet.* {words}|x\.parquet {words}"):
        open_dataset(str(tmp_path / "x.parquet"), "train")


def test_columns_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    _write(path, {"one": BLOBS, "two": BLOBS[::-1], "kind": ["a", "b", "a", "b"]})
    listing = list_source(path, SourceOptions(columns="two,kind"))
    assert [c.label for c in listing.candidates] == ["a", "b", "a", "b"]
    assert list_source(path, SourceOptions(columns="two")).candidates[0].label is None
    with pytest.raises(ValueError, match=r"x\.parquet has no column 'three': it has one, two, kind"):
        list_source(path, SourceOptions(columns="three"))
    with pytest.raises(ValueError, match="the column kind is string, which holds no image files"):
        list_source(path, SourceOptions(columns="kind"))


def test_a_footer_cut_at_every_tenth_byte_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    whole = write_parquet(path, dict(list(FILES.items())[:6])).read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for length in [*range(0, start, start // 20), *range(start, len(whole), 10)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.parquet is (damaged|empty|no kind of file)"):
            list_source(path)
        path.write_bytes(whole[:length] + whole[-8:])  # with its end mark
        with pytest.raises(ValueError, match=r"x\.parquet is (damaged|empty|no kind of file)"):
            list_source(path)


def test_damaged_bytes_never_end_in_a_foreign_error_or_outside_of_the_file(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.parquet", np.random.default_rng(0)
    whole = write_parquet(path, FILES).read_bytes()
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    heads = [group.column(c).data_page_offset for group in groups for c in range(group.num_columns)]
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for k in range(250):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            at = (
                int(rng.choice(heads)) + int(rng.integers(60))
                if k % 2
                else int(rng.integers(start, len(data)))
            )
            data[min(at, len(data) - 1)] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            listing = list_source(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  (many may pass)
        else:
            assert all(0 < c.offset <= c.offset + c.length <= len(data) for c in listing.candidates)


def _header(kind: int, size: int, values: int, encoding: int = 0) -> bytes:
    """A page header of version 1, in Thrift's compact protocol."""

    def varint(value: int) -> bytes:
        value, out = value << 1, bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    own = (
        b"\x15"
        + varint(values)
        + b"\x15"
        + varint(encoding)
        + b"\x15"
        + varint(3)
        + b"\x15"
        + varint(3)
        + b"\0"
    )
    return b"\x15" + varint(kind) + b"\x15" + varint(size) + b"\x15" + varint(size) + b"\x2c" + own + b"\0"


def _read(descriptor: int, end: int, values: int) -> None:
    read = partial(os.pread, descriptor)
    for page in pages(read, 4, end, values):
        list(byte_arrays(read, page, 1))


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (_header(0, 2**31 - 1, 4), 4),
        (_header(0, 10, 2**31 - 1) + bytes(10), 2**31 - 1),
        (_header(0, 10, 0) + bytes(10), 4),
        (_header(0, 10, 5) + bytes(10), 4),
        (_header(0, 10, 4) + b"\xff\xff\xff\x7f" + bytes(6), 4),
        (_header(0, 10, 4) + b"\2\0\0\0\xfe\xff" + bytes(4), 4),
        (_header(0, 11, 4) + b"\2\0\0\0\x08\1" + b"\xff\xff\xff\xff\0", 4),
        (b"\x1c" * 4000, 4),
        (b"\x19\xff" * 10, 4),
        (b"\xff" * 4000, 4),
        (bytes(100), 4),
        (b"", 4),
    ],
    ids=range(12),
)
def test_a_page_header_that_lies_is_damage(tmp_path: Path, data: bytes, values: int) -> None:
    path = tmp_path / "page"
    path.write_bytes(b"PAR1" + data)
    with open(path, "rb") as file, pytest.raises(Damage):
        _read(file.fileno(), 4 + len(data), values)


def test_a_column_of_labels_that_is_a_bomb_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastanc.pipelines.index.sources.parquet._MOST_PAGE_BYTES", 1 << 16)
    path = tmp_path / "x.parquet"
    names = pa.array(["a" * (1 << 18), "b", "c", "d"])
    _write(path, {"image": BLOBS, "label": names}, compression={"image": "NONE", "label": "ZSTD"})
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match=r"x\.parquet is damaged \(a page of \d+ bytes of labels or names\)"):
        list_source(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", FILES)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"x\.parquet is a parquet file: pip install 'fastanc\[parquet\]' to read it"
    ):
        list_source(path)
    assert io.BytesIO(path.read_bytes()).read(4) == b"PAR1"
