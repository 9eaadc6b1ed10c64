"""What a cache is the cache of: the facts that decide the outputs, and how two sets of facts differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.cache.rows import Field

FORMAT = 2
"""Of the files: 2 is a file and its checksums for each field of a view; 1 were shards with commit records."""
IDENTITY = "identity.json"
_SHOWN = 4


class Difference(NamedTuple):
    """One fact in which two identities differ; None where a side does not have it."""

    key: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.key} ({json.dumps(self.theirs)} there, {json.dumps(self.ours)} here)"


def identity(
    dataset: Mapping[str, object],
    rule: Mapping[str, object],
    checks: Mapping[str, int],
    teacher: Mapping[str, object],
) -> dict[str, Any]:
    """Return the identity of a teacher's outputs, as plain JSON values.

    Args:
        dataset: the data set's describe(): fingerprint, decoder, resizer and their versions.
        rule: the views' describe(): rule, looks and mixing, seed included.
        checks: CRC-32 of what each of these does to the images: no change of their code goes unseen.
        teacher: name, digests of weights and head, autocast dtype, whether BatchNorm is folded.
    """
    facts = {
        "dataset": dict(dataset),
        "rule": dict(rule),
        **checks,
        "teacher": dict(teacher),
    }
    return json.loads(_canonical(facts))


def described(fields: Sequence[Field]) -> list[dict[str, object]]:
    """Return fields as plain values."""
    return [asdict(field) for field in fields]


def store_facts(facts: Mapping[str, Any], fields: Sequence[Field], num_images: int) -> dict[str, Any]:
    """Return the whole identity of a cache: of the outputs, and of the files that hold them."""
    return {**facts, "format": FORMAT, "fields": described(fields), "num_images": num_images}


def _canonical(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))


def identity_hash(facts: Mapping[str, Any]) -> str:
    """Return the first 12 hex digits of the SHA-256 of an identity."""
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()[:12]


def folder_name(facts: Mapping[str, Any]) -> str:
    """Return a cache's folder name: teacher, data set, size and the identity's hash."""
    dataset, rule, teacher = (facts.get(part, {}) for part in ("dataset", "rule", "teacher"))
    words = [str(teacher.get("name", "teacher")), str(dataset.get("name", "data"))]
    if "out_px" in rule:
        words.append(f"{rule['out_px']}px")
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words)).strip("-.")[:80]
    return f"{readable}-{identity_hash(facts)}"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """Return the facts in which two identities differ, nested keys joined by dots."""
    a, b = _flat(theirs), _flat(ours)
    return [Difference(k, a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_identity(path: Path) -> dict[str, Any]:
    """Return the identity of the cache in a folder; raises FileNotFoundError or ValueError."""
    facts = _facts(path)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a cache of format {facts.get('format', 1)}, this version reads {FORMAT}: build it again with"
            " `fastanc cache build`, and remove the folder"
        )
    return facts


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / IDENTITY).read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is not a cache: it has no {IDENTITY}; see `fastanc cache info`"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / IDENTITY} is not readable: restore it from a copy of the cache") from error
    if not isinstance(facts, dict) or not path.name.endswith(identity_hash(facts)):
        raise ValueError(f"{path / IDENTITY} does not match its folder's name: restore it from a copy")
    return facts


def caches(cache_dir: str | Path) -> list[Path]:
    """Return the folders of all caches under a folder, by name."""
    return sorted(path.parent for path in Path(cache_dir).glob(f"*/{IDENTITY}"))


def shown(found: Sequence[Difference]) -> str:
    """Return the first few differences as the end of a sentence."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "which differs in " + ", ".join(str(d) for d in found[:_SHOWN]) + more


def no_cache(cache_dir: Path, facts: Mapping[str, Any]) -> str:
    """Return the sentence that says why no cache of a folder fits an identity, naming the nearest."""
    candidates = []
    for path in caches(cache_dir):
        with suppress(ValueError):
            candidates.append((differences({"format": 1} | _facts(path), facts), path))
    if not candidates:
        return f"{cache_dir} holds no teacher cache: run `fastanc cache build`, or set --teacher.cache fill"
    found, path = min(candidates, key=lambda candidate: (len(candidate[0]), candidate[1].name))
    return (
        f"no cache in {cache_dir} fits this teacher, data set and views; the nearest is {path.name},"
        f" {shown(found)}: build the one that is missing with `fastanc cache build`, or use those values"
    )
