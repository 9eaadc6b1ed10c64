"""Which columns of a parquet file are the image and the class: as the user says, as `datasets` or their names do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.pipelines.index.columns import LABELS, NAMES, asked_columns, column_of

_SHOWN = 12


class Columns(NamedTuple):
    """Which columns of a file are what."""

    image: str
    """Name of the column."""
    is_struct: bool
    """Whether it is a struct with the bytes and a file's name."""
    has_path: bool
    label: str | None
    classes: list[str] | None
    """Names of the classes, where labels are positions among them."""


def columns_of(file: Any, path: Path, asked: str | None) -> Columns:
    """Return the image's column and the label's; raises ValueError that names what there is."""
    import pyarrow

    schema, features = file.schema_arrow, _features(file.schema_arrow)
    names = [str(name) for name in schema.names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has {twice[0]!r} twice among its columns: call them otherwise")

    def holds_images(name: str) -> bool:
        kind = schema.field(name).type
        if pyarrow.types.is_struct(kind):
            at = kind.get_field_index("bytes")
            return at >= 0 and _is_binary(kind.field(at).type)
        return _is_binary(kind)

    if asked is not None:
        image, at = asked_columns(asked, names, path)
        label = None if at is None else names[at]
    else:
        image = _image_column(names, features, holds_images, path)
        label = _label_column([name for name in names if name != names[image]], features, path)
    name, kind = names[image], schema.field(image).type
    if not holds_images(name):
        raise ValueError(
            f"{path}: the column {name} is {kind}, which holds no image files: name another by --columns"
            " (data.columns)"
        )
    is_struct = bool(pyarrow.types.is_struct(kind))
    at = kind.get_field_index("path") if is_struct else -1
    has_path = at >= 0 and pyarrow.types.is_string(kind.field(at).type)
    classes = _classes(features.get(label)) if label is not None else None
    if label is not None:
        _check_label(schema.field(label).type, label, path)
    return Columns(name, is_struct, has_path, label, classes)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _image_column(names: list[str], features: dict[str, Any], holds_images: Any, path: Path) -> int:
    known = [k for k, name in enumerate(names) if holds_images(name)]
    said = [k for k in known if _kind(features.get(names[k])) == "Image"]
    usual = column_of([names[k] for k in known], NAMES)
    if not known:
        raise ValueError(f"{path} has no column of images, as bytes: it has {', '.join(names[:_SHOWN])}")
    if len(said) == 1 or len(known) == 1:
        return (said if len(said) == 1 else known)[0]
    if usual is None:
        which = ", ".join(names[k] for k in known)
        raise ValueError(
            f"{path} has several columns of bytes ({which}): name one by --columns (data.columns)"
        )
    return known[usual]


def _label_column(names: list[str], features: dict[str, Any], path: Path) -> str | None:
    usual = column_of(names, LABELS)
    if usual is not None:
        return names[usual]
    said = [name for name in names if _kind(features.get(name)) == "ClassLabel"]
    if len(said) > 1:
        raise ValueError(
            f"{path} has several columns of classes ({', '.join(said)}): name one by --columns IMAGE,LABEL"
            " (data.columns)"
        )
    return said[0] if said else None


def _check_label(kind: Any, name: str, path: Path) -> None:
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (
        types.is_integer(value)
        or types.is_string(value)
        or types.is_large_string(value)
        or types.is_null(value)
    ):
        raise ValueError(
            f"{path}: the column {name} is {kind}, and a label is a number or a name: name another by --columns"
            " IMAGE,LABEL (data.columns), or the image's alone"
        )


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` says of the columns, in the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (LookupError, ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _classes(feature: Any) -> list[str] | None:
    """The names of a ClassLabel; of equal ones the later get their number, as one name is one class."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if _kind(feature) != "ClassLabel" or not isinstance(names, list) or not names:
        return None
    seen = Counter[str]()
    unique = []
    for number, name in enumerate(map(str, names)):
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({number})")
    return unique
