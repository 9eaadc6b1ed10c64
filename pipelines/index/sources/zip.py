"""A zip of images: members that are stored as they are lie in it as byte ranges, like those of a tar."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastanc.pipelines.anywhere import Read, for_library
from fastanc.pipelines.anywhere import opened as opened_file
from fastanc.pipelines.blocks import read_ranges
from fastanc.pipelines.index.sources.archive import CLASSES, Members, listed, says_labels
from fastanc.pipelines.index.sources.kinds import pack_first
from fastanc.pipelines.index.sources.listing import IMAGE_SUFFIXES, Listing, Source, rubbish_in
from fastanc.pipelines.remote_headers import Passed
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.remote_trouble import StoreError
from fastanc.pipelines.tar_file import Member

_LOCAL = struct.Struct(
    "<4s22xHH"
)  # a member's own header: its mark, bytes of its name and of its extra field
_MARK, _DOS = b"PK\x03\x04", 0
_MOST_TEXT_BYTES = 1 << 28
_NEAR = 1 << 12  # bytes between two headers in a store that are read rather than skipped


def list_zip(source: Source) -> Listing:
    """Return what a zip holds; raises ValueError where it is damaged, encrypted, or its images are compressed."""
    path, found = source.base / source.files[0], Members()
    with opened(path) as archive:
        infos = archive.infolist()
        check_readable(path, infos)
        starts = Counter(info.header_offset for info in infos)
        places = sorted({*starts, archive.start_dir})
        following = dict(zip(places, places[1:]))
        with _heads(path, infos) as read:
            for info in infos:
                name = name_of(info)
                if info.is_dir():
                    found.folders.add(name.rstrip("/"))
                elif says_labels(name) or name == CLASSES:
                    found.texts[name] = partial(text_in, path, info.filename)
                else:
                    shared = starts[info.header_offset] > 1
                    end = 0 if shared else following.get(info.header_offset, 0)
                    found.add(_member(read, info, name, end), 0, path)
    return listed(source, found)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yield a zip, its directory read; raises ValueError in one sentence where that is damaged."""
    with for_library(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except OSError:
            raise
        except Exception as error:  # of a directory that is damaged there may come any
            raise ValueError(f"{path} is not a readable zip ({error}): get it again") from None
        with archive:
            yield archive


def check_readable(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Raise ValueError where images of a zip are encrypted, or compressed and so cannot be read in place."""
    images = [info for info in infos if is_image(info)]
    if any(info.flag_bits & 1 for info in images):
        raise ValueError(f"{path} is an encrypted zip: unpack it with its password, and give the folder")
    packed = sum(info.compress_type != zipfile.ZIP_STORED for info in images)
    if packed:
        raise pack_first(path, f"a zip in which {packed:,} of {len(images):,} images are compressed")


def is_image(info: zipfile.ZipInfo) -> bool:
    """Tell whether a member is an image by its name, and not one that another program left."""
    name = name_of(info)
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and rubbish_in(name) is None


def name_of(info: zipfile.ZipInfo) -> str:
    """Return a member's name with slashes, also where a program for Windows wrote it with backslashes."""
    name = info.filename
    return name.replace("\\", "/") if info.create_system == _DOS and "/" not in name else name


def problem_of(info: zipfile.ZipInfo) -> str:
    """Return why a member is no file, or ""."""
    return "a link inside the zip" if stat.S_ISLNK(info.external_attr >> 16) else ""


def text_in(path: Path, name: str) -> bytes:
    """Return a text that a zip holds, stored or compressed; raises ValueError where it is huge or damaged."""
    with opened(path) as archive:
        try:
            with archive.open(name) as file:
                data = file.read(_MOST_TEXT_BYTES + 1)
        except StoreError:
            raise
        except Exception as error:
            raise ValueError(f"{path} holds {name}, which cannot be read ({error}): get it again") from None
    if len(data) > _MOST_TEXT_BYTES:
        raise ValueError(
            f"{path} holds {name} of more than {_MOST_TEXT_BYTES >> 20} MiB: that is no list of labels"
        )
    return data


@contextmanager
def _heads(path: Path, infos: list[zipfile.ZipInfo]) -> Iterator[Read]:
    """Yield what reads the members' own headers; of a zip in a store many are asked for at once."""
    if not isinstance(path, RemotePath):
        with opened_file(path) as file:
            yield file.read
        return
    starts = sorted({info.header_offset for info in infos if info.header_offset >= 0})
    found = read_ranges(((path, start, _LOCAL.size) for start in starts), near=_NEAR)
    heads, passed = dict[int, bytes](), Passed(path.stat().st_size)
    for data, start in zip(found, starts):  # in this order, so that all that was found is taken
        heads[start] = data if isinstance(data, bytes) else b""
        passed.to(start)
    yield lambda _, start: heads.get(start, b"")


def _member(read: Read, info: zipfile.ZipInfo, name: str, end: int) -> Member:
    """The bytes of a stored member, from its own header, whose lengths differ from the directory's.

    They must end before the next member begins: a size that lies, or members that share their bytes, are refused.
    """
    problem = problem_of(info)
    if not problem and info.compress_type != zipfile.ZIP_STORED:
        return Member(name, 0, 0, "compressed inside the zip")
    head = read(_LOCAL.size, info.header_offset) if info.header_offset >= 0 else b""
    if len(head) < _LOCAL.size or not head.startswith(_MARK):
        return Member(name, 0, 0, problem or "no header where the zip says")
    _, name_bytes, extra_bytes = _LOCAL.unpack(head)
    offset, length = info.header_offset + _LOCAL.size + name_bytes + extra_bytes, info.file_size
    if info.compress_size != length or offset + length > end:
        problem = problem or "a size that cannot be true"
    return Member(name, offset, length, problem)
