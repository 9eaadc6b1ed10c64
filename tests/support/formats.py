"""One set of images, written in every format in which people hold them, by the format's own library."""

from __future__ import annotations

import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from support.images import put
from support.tars import tar_of_tars, write_tar

Files = Mapping[str, bytes]
"""CLASS/NAME -> the bytes of the image."""


def classes_of(files: Files) -> list[str]:
    return sorted({name.split("/")[0] for name in files})


def zipped(path: Path, files: Mapping[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Write files into a zip and return its path."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def parquet_table(files: Files, features: bool = True, classes: Sequence[str] = ()) -> object:
    """Return image {bytes, path} and label as `datasets` lays them out, in a mixed order."""
    pa = pytest.importorskip("pyarrow")
    classes = list(classes or classes_of(files))
    names = sorted(files, key=lambda name: name[::-1])
    images = [{"bytes": files[name], "path": name.split("/")[1]} for name in names]
    labels = [classes.index(name.split("/")[0]) for name in names]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    if features:
        said = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": said}})
        table = table.replace_schema_metadata({"huggingface": info})
    return table


def write_parquet(
    path: Path, files: Files, features: bool = True, classes: Sequence[str] = (), **options: object
) -> Path:
    """Write the set as parquet with images that are neither compressed nor dictionary-encoded."""
    pq = pytest.importorskip("pyarrow.parquet")
    usual = {"compression": "NONE", "use_dictionary": False, "row_group_size": 7, "data_page_size": 9000}
    pq.write_table(parquet_table(files, features, classes), path, **{**usual, **options})
    return path


def _tree(folder: Path, files: Files) -> Path:
    return put(folder / "tree", files)


def _tar(folder: Path, files: Files) -> Path:
    return write_tar(folder / "set.tar", files)


def _nested(folder: Path, files: Files) -> Path:
    return tar_of_tars(folder / "set.tar", files)


def _webdataset(folder: Path, files: Files) -> Path:
    wds = pytest.importorskip("webdataset")
    (folder / "shards").mkdir(exist_ok=True)
    classes = classes_of(files)
    with wds.ShardWriter(str(folder / "shards" / "set-%04d.tar"), maxcount=11, verbose=0) as sink:
        for name, data in files.items():
            top, file = name.split("/")
            sink.write({"__key__": file.split(".")[0], "jpg": data, "cls": classes.index(top)})
    return folder / "shards"


def _zip(folder: Path, files: Files) -> Path:
    return zipped(folder / "set.zip", {f"photos/{name}": data for name, data in files.items()})


def _zip_map(folder: Path, files: Files) -> Path:
    classes = classes_of(files)
    lines = [f"set.zip@/{name}\t{classes.index(name.split('/')[0])}" for name in files]
    return zipped(folder / "set.zip", {**files, "set_map.txt": "\n".join(lines).encode()})


def _parquet(folder: Path, files: Files) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    names = sorted(files)
    for k in range(3):
        part = {name: files[name] for name in names[k::3]}
        write_parquet(folder / "data" / f"train-{k:05d}-of-00003.parquet", part, classes=classes_of(files))
    return folder / "data" / "train-*.parquet"


def _datasets(folder: Path, files: Files) -> Path:
    datasets = pytest.importorskip("datasets")
    classes = classes_of(files)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    columns = {
        "image": [{"bytes": data, "path": name.split("/")[1]} for name, data in files.items()],
        "label": [classes.index(name.split("/")[0]) for name in files],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / "set.parquet"))
    return folder / "set.parquet"


def _csv(folder: Path, files: Files) -> Path:
    put(folder / "images", files)
    with open(folder / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Image Path", "weight", "Class Name"])
        writer.writerows([f"images/{name}", "1,5", name.split("/")[0]] for name in files)
    return folder / "list.csv"


def _json_lines(folder: Path, files: Files) -> Path:
    put(folder / "images", files)
    lines = [json.dumps({"label": name.split("/")[0], "path": f"./images/{name}"}) for name in files]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


def _imagefolder(folder: Path, files: Files) -> Path:
    put(folder / "set", files)
    with open(folder / "set" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "label"])
        writer.writerows([name, "a, b", name.split("/")[0]] for name in files)
    return folder / "set"


def mds_columns(files: Files) -> dict[str, str]:
    return {"image": "jpeg", "label": "int", "name": "str"}


def write_mds(folder: Path, files: Files, per_shard: int = 11) -> Path:
    """Write the set as `MDSWriter(columns={"image": "bytes", "label": "int", "name": "str"})` does.

    That library brings the clients of all clouds; that these are its bytes a test shows where it is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes, names, shards = classes_of(files), list(files), []
    said = {
        "column_encodings": ["bytes", "int", "str"],
        "column_names": ["image", "label", "name"],
        "column_sizes": [None, 8, None],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 1 << 26,
        "version": 2,
    }
    text = json.dumps(said, sort_keys=True).encode()
    for k, start in enumerate(range(0, len(names), per_shard)):
        samples = []
        for name in names[start : start + per_shard]:
            own = name.encode()
            label = struct.pack("<q", classes.index(name.split("/")[0]))
            samples.append(struct.pack("<II", len(files[name]), len(own)) + files[name] + label + own)
        first = 4 + 4 * (len(samples) + 1) + len(text)
        ends = [first + sum(map(len, samples[:n])) for n in range(len(samples) + 1)]
        data = struct.pack(f"<{len(ends) + 1}I", len(samples), *ends) + text + b"".join(samples)
        (folder / f"shard.{k:05d}.mds").write_bytes(data)
        raw = {"basename": f"shard.{k:05d}.mds", "bytes": len(data), "hashes": {}}
        shards.append({**said, "raw_data": raw, "samples": len(samples), "zip_data": None})
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))
    return folder


def _mds(folder: Path, files: Files) -> Path:
    return write_mds(folder / "mds", files)


FORMATS: dict[str, Callable[[Path, Files], Path]] = {
    "tree": _tree,
    "tar": _tar,
    "tar of tars": _nested,
    "webdataset": _webdataset,
    "zip": _zip,
    "zip with a map": _zip_map,
    "parquet": _parquet,
    "datasets": _datasets,
    "csv": _csv,
    "json lines": _json_lines,
    "imagefolder": _imagefolder,
    "mds": _mds,
}
"""Format -> the function that writes a set into an empty folder and returns the path that fastanc is given."""

NUMBERS = {"webdataset", "mds"}
"""Formats whose labels are numbers without names."""


def stored_zip(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of stored members as bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()
