"""Walking an uncompressed tar by its headers alone, so that its members can be read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastanc.pipelines.anywhere import Read, opened, threads

BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_DATA = b"123456"  # links, devices, folders, pipes: their size field counts for nothing


class Member(NamedTuple):
    """A file inside a tar: bytes [offset, offset + length) of the tar."""

    name: str
    offset: int
    length: int
    problem: str = ""
    """Why its bytes cannot be read in place ("a link", "a sparse file"); else empty."""
    data: bytes | None = None
    """Its bytes, where they were asked for with its header."""


Wanted = Callable[[str, int], bool]
"""(name, bytes) -> whether a member's data are read with its header."""


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _size(field: bytes | str | int, path: Path, position: int) -> int:
    """Return a member's bytes; ValueError where that is no number of bytes."""
    try:
        size = _number(field) if isinstance(field, bytes) else int(field)
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(
            f"{path} is not a readable tar: the size in the header at byte {position} is damaged: get it again"
        )
    return size


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(data: bytes, path: Path) -> dict[str, str]:
    """Return the records "LENGTH KEY=VALUE\\n" of a POSIX extended header."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            raise ValueError(f"{path} is not a readable tar: it has a damaged extended header: get it again")
        key, _, value = rest[: int(length) - len(length) - 1].rstrip(b"\n").partition(b"=")
        records[_text(key)] = _text(value)
        data = data[int(length) :]
    return records


def is_header(block: bytes) -> bool:
    """Tell whether a block of 512 bytes is a member's header, by the sum of its bytes that it holds."""
    try:
        return (
            len(block) == BLOCK and _number(block[148:156]) == sum(block[:148]) + sum(block[156:]) + 8 * 0x20
        )
    except ValueError:
        return False


def _check_block(block: bytes, path: Path, position: int, start: int) -> None:
    if is_header(block):
        return
    for magic, kind in _COMPRESSED.items():
        if position == start and block.startswith(magic):
            raise ValueError(
                f"{path} is compressed ({kind}): decompress it, images are read in place from a plain tar"
            )
    raise ValueError(f"{path} is not a readable tar: there is no header at byte {position}: get it again")


def walk(
    path: Path,
    start: int = 0,
    end: int | None = None,
    folders: set[str] | None = None,
    wanted: Wanted | None = None,
) -> Iterator[Member]:
    """Yield the files of the tar that lies in bytes [start, end) of `path`, in order (all of it by default).

    The names of its folders, `./` and the last slash taken off, are added to `folders`. Members that are `wanted`
    (name, bytes) come with their data.

    GNU long names, POSIX extended headers and base-256 sizes are understood. Raises ValueError where the tar
    is compressed, damaged or cut off; the members before that have been yielded by then.
    """
    with opened(path, scattered=True) as file:  # headers lie far apart
        last = file.size if end is None else end
        for member in _walk(file.read, path, start, last, set() if folders is None else folders):
            if wanted is not None and not member.problem and wanted(member.name, member.length):
                member = member._replace(data=file.read(member.length, member.offset))
            yield member


def _walk(read: Read, path: Path, start: int, end: int, folders: set[str]) -> Iterator[Member]:
    position, extended, fixed = start, dict[str, str](), dict[str, str]()
    while True:
        block = read(max(0, min(BLOCK, end - position)), position)
        if len(block) < BLOCK:
            raise ValueError(
                f"{path} ends at byte {position} without an end mark: the tar was cut off, get it again"
            )
        if not block.strip(b"\0"):
            return
        _check_block(block, path, position, start)
        kind, size = block[156:157], _size(block[124:136], path, position)
        offset = position + BLOCK
        if kind in b"xgLK":
            if offset + size > end:
                raise ValueError(f"{path} is cut off inside the header at byte {position}: get it again")
            data = read(size, offset)
            if kind == b"x":
                extended |= _pax(data, path)
            elif kind == b"g":
                fixed |= _pax(data, path)
            elif kind == b"L":
                extended["path"] = _text(data)
            position = offset + -(-size // BLOCK) * BLOCK
            continue
        records, extended = fixed | extended, {}
        name = records.get("path") or _text(block[:100])
        if "path" not in records and block[257:263] == b"ustar\0" and block[345]:
            name = f"{_text(block[345:500])}/{name}"
        size = 0 if kind in _NO_DATA else _size(records.get("size", size), path, position)
        if offset + size > end:
            raise ValueError(f"{path} is cut off inside member {name!r}: get it again")
        position = offset + -(-size // BLOCK) * BLOCK
        if kind in b"12":
            yield Member(name, offset, 0, "a link inside the tar")
        elif kind == b"S" or any(key.startswith("GNU.sparse") for key in records):
            if kind == b"S":
                position += _sparse_blocks(read, offset, block)
            yield Member(records.get("GNU.sparse.name", name), offset, 0, "a sparse file inside the tar")
        elif kind == b"5" or (kind in b"07\0" and name.endswith("/")):
            folders.add(name.removeprefix("./").rstrip("/"))
        elif kind in b"07\0":
            yield Member(name, offset, size)


def _sparse_blocks(read: Read, offset: int, block: bytes) -> int:
    """Return the bytes of an old GNU sparse member's extra header blocks (they precede its data)."""
    extra, more = 0, block[482:483].strip(b"\0")
    while more:
        more = read(BLOCK, offset + extra)[504:505].strip(b"\0")  # nothing beyond the end
        extra += BLOCK
    return extra


def walk_nested(path: Path, folders: set[str] | None = None, wanted: Wanted | None = None) -> list[Member]:
    """Return the files of a tar; those of an inner NAME.tar are called NAME/... and lie in the outer file.

    The names of the outer tar's folders are added to `folders`; `wanted` is that of `walk`.
    """
    outer = list(walk(path, folders=folders, wanted=wanted))
    inner = [member for member in outer if member.name.lower().endswith(".tar")]

    def of(member: Member) -> list[Member]:
        return list(walk(path, member.offset, member.offset + member.length, wanted=wanted))

    members = [member for member in outer if not member.name.lower().endswith(".tar")]
    with threads(8) as pool:
        for tar, found in zip(inner, pool.map(of, inner)):
            members += [m._replace(name=f"{tar.name[:-4]}/{m.name.removeprefix('./')}") for m in found]
    return members


END_MARK = bytes(2 * BLOCK)


def member_bytes(name: str, data: bytes) -> bytes:
    """Return a file as a tar holds it: header, data and padding; the same bytes for the same input."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)
