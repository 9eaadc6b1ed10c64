"""The formats of weights: what a file of tensors holds, and what is said of files that are none.

Nothing in a file is ever executed. What a pickle holds beside tensors (arguments, configurations, numpy's numbers) is
read as objects that are inert, so that it does not stand in the way of the weights.
"""

from __future__ import annotations

import collections
import errno
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_CONTAINER = re.compile(
    rf"(SETITEM|APPEND|EXTEND).* but got <class '{re.escape(__name__)}\.([\w.]+)'>", re.DOTALL
)
_OPCODE = re.compile(r"Unsupported operand|Unsupported opcode")
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:-1]  # what torch.save put first before it wrote zips
_LATEST = 32  # further on it belongs to a tensor in a bare pickle
_FIRST = (pickle.MARK, pickle.GLOBAL, pickle.EMPTY_DICT)  # of dictionaries in protocol 0 and 1
_ZIP = b"PK\x03\x04"
_MOST_CLASSES, _CHUNK = 200, 1 << 20


def is_safetensors(path: Path) -> bool:
    """Tell whether a file is safetensors, or named so and known to be nothing else."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    looks = len(head) == 9 and head[8:] == b"{" and length < 100_000_000
    return looks or (path.suffix == ".safetensors" and not head.startswith(_ZIP) and _foreign(path) is None)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; ValueError where it is damaged."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata alone; ValueError where the file is damaged."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged header there may come any
        raise ValueError(f"weights file {path} is damaged ({error}): fetch or write it again") from error


class Inert:
    """Stands for an object of a pickle that is no tensor: takes whatever it is given and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Return one, whatever is given."""
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def unpickled(path: Path) -> object:
    """Return what torch.save put into a file, on the CPU; ValueError where it cannot be read or is not trusted."""
    if foreign := _foreign(path):
        raise ValueError(f"weights file {path} {foreign}")
    inert: dict[str, type] = {}  # name of a class in the pickle -> what is made in its place
    for _ in range(_MOST_CLASSES):
        try:
            known: list[Any] = [(kind, name) for name, kind in inert.items()]
            # Opened here, since torch.load tells a file's format by its name.
            with torch.serialization.safe_globals(known), warnings.catch_warnings(), path.open("rb") as file:
                warnings.simplefilter("ignore")  # of the pickle's protocol, of sparse tensors
                return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle may end in any: KeyError, IndexError, AttributeError
            if not _learnt(str(error), inert):
                raise ValueError(f"weights file {path} {_refusal(str(error), path)}") from error
    raise ValueError(f"weights file {path} holds too many classes: save its state dict alone")


def _learnt(error: str, inert: dict[str, type]) -> bool:
    """Add the class that torch.load stumbled over, or make a container of it; False where that is no help."""
    name = _GLOBAL.search(error)
    if name is not None and name[1] not in inert and "blocked" not in error:
        inert[name[1]] = type(name[1], (Inert,), {})
        return True
    if (container := _CONTAINER.search(error)) and issubclass(inert.get(container[2], int), Inert):
        inert[container[2]] = collections.OrderedDict if container[1] == "SETITEM" else list
        return True
    return False


def _refusal(error: str, path: Path) -> str:
    name, opcode = _GLOBAL.search(error), _OPCODE.search(error)
    line = f"torch.save(torch.load({os.fspath(path)!r}, weights_only=False), 'weights.pth')"
    if opcode is not None and _protocol(path) > 3:
        return (
            f"was saved with pickle_protocol {_protocol(path)}, which is not read without executing it: where you"
            f" trust the file, write it again with {line}"
        )
    what = f"holds {name[1]}" if name else "is damaged or holds more than tensors"
    return (
        f"{what}, which fastanc does not execute: fetch it again, or save its state dict"
        " alone with torch.save(network.state_dict(), 'weights.pth')"
    )


def _protocol(path: Path) -> int:
    """Return the pickle protocol that a file of torch.save names, 0 where it names none."""
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
    if head == _ZIP:
        with zipfile.ZipFile(path) as archive:
            head = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return head[1] if head.startswith(pickle.PROTO) and len(head) > 1 else 0


def _is_bare(path: Path, head: bytes) -> bool:
    """Tell whether a file is one whole pickle, which torch.save has never written: its own begin with a number."""
    if _MAGIC in head[:_LATEST] or not head.startswith((pickle.PROTO, *_FIRST)):
        return False
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):  # reads, and executes nothing
                pass
            return not file.read(1)
    except Exception:  # no pickle, in whatever way
        return False


def _foreign(path: Path) -> str | None:
    """Return what a file is that is known to be no checkpoint, and what to do; None for all others."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "is empty: fetch or write it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and no weights: run `git lfs pull` where it was cloned"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and no weights: download the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "is packed by gzip: unpack it (gunzip, or tar -xzf) and name the file in it"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, e.g. of Keras: name weights of PyTorch"
    if path.suffix == ".onnx":
        line = "torch.save(network.state_dict(), 'weights.pth')"
        return f"is an ONNX program: name the weights of the network that it was made of, saved by {line}"
    if head[257:262] == b"ustar":
        return "is a tar: unpack it and name the file of weights in it"
    if _is_bare(path, head):
        line = f"torch.save(pickle.load(open({os.fspath(path)!r}, 'rb')), 'weights.pth')"
        return f"is a bare pickle, which fastanc does not execute: where you trust it, write it again with {line}"
    return _foreign_zip(path) if head.startswith(_ZIP) else None


def _foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return _other_program(path, archive) or _damaged_member(archive)
    except Exception as error:  # cut or damaged, in whatever way
        if _is_systems(error):
            raise
        return "is cut or damaged: fetch or write it again"


def _other_program(path: Path, archive: zipfile.ZipFile) -> str | None:
    names = [name.partition("/")[2] or name for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        line = f"torch.save(torch.jit.load({os.fspath(path)!r}).state_dict(), 'weights.pth')"
        return f"is a TorchScript program: save its tensors with {line}"
    if any(re.search(r"serialized_exported_program|archive_format|models/.*\.json", name) for name in names):
        line = f"torch.save(torch.export.load({os.fspath(path)!r}).state_dict, 'weights.pth')"
        return f"is a program of torch.export: save its tensors with {line}"
    if "data.pkl" in names:
        return None
    return "is a zip of something else: unpack it and name the file of weights in it"


def _damaged_member(archive: zipfile.ZipFile) -> str | None:
    """Return what is said of a member whose bytes are not those of its CRC, which torch does not check."""
    for member in archive.infolist():
        if not member.CRC:  # torch.save writes none where it is told to (compute_crc32 = False)
            continue
        try:
            with archive.open(member) as file:
                while file.read(_CHUNK):
                    pass
        except Exception as error:  # besides another CRC, whatever a damaged header makes of it
            if _is_systems(error):
                raise
            return f"is damaged in {member.filename}: fetch or write it again"
    return None


def _is_systems(error: Exception) -> bool:
    """Tell whether the machine is at fault and not the file, which may name a place that does not exist (EINVAL)."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL)
