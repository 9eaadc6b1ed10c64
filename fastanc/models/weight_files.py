"""Files of weights of any source: which tensors in them are the network's, and what is said of those that are none.

Nothing in a file is ever executed. What a pickle holds beside tensors (arguments, configurations, numpy's numbers) is
read as objects that are inert, so that it does not stand in the way of the weights.
"""

from __future__ import annotations

import collections
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

_PREFIXES = ("module.", "bare.", "student.", "network.", "_orig_mod.", "model.", "net.")
_USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module")
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?)($|[._])")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|criterion|loss|hyper|callback|config|args", re.IGNORECASE)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_CONTAINER = re.compile(
    rf"(SETITEM|APPEND|EXTEND).* but got <class '{re.escape(__name__)}\.([\w.]+)'>", re.DOTALL
)
_DEEPEST, _MOST_CLASSES = 4, 200


class Weights(NamedTuple):
    """What a file gives."""

    state: dict[str, Tensor]
    """With the bare network's keys, on the CPU."""
    metadata: dict[str, str]
    """Of a safetensors file."""
    key: str
    """Where in the file the state dict lay, e.g. state_dict_ema; empty for the whole file."""
    others: tuple[str, ...]
    """Where other ones lie, that `weights_key` may name."""


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path of weights means: itself, or the student in the folder of a finished run."""
    path = Path(path)
    return path / "student.safetensors" if path.is_dir() else path


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> Weights:
    """Return the state dict in a file of weights.

    Takes safetensors, and what torch.save writes of a state dict or of dictionaries that hold some: at `key`, or the
    only one, or its moving average where there are both, as timm does. The prefixes of DataParallel, of Lightning, of
    `Wrapper`s and of torch.compile are cut off. Raises FileNotFoundError when there is no file, ValueError when it
    holds no weights, or several that nothing tells apart.
    """
    path = weights_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist: correct the path")
    if _is_safetensors(path):
        state, metadata = _read_safetensors(path)
        if key:
            raise ValueError(f"weights file {path} has no parts to choose from: leave weights_key out")
        found = Weights(state, metadata, "", ())
    else:
        found = _chosen(path, _unpickled(path), key)
    state = {name: value for name, value in found.state.items() if name != "n_averaged"}
    while "head_name" not in found.metadata and (
        prefix := _common_prefix(state)
    ):  # of ours the keys are bare
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return found._replace(state=state)


def aligned(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's state dict with the prefix again that is really part of a network's own names."""
    prefix = ""
    while (rest := {key.removeprefix(prefix): own[key] for key in own}) and (more := _common_prefix(rest)):
        prefix += more
    return (
        {prefix + key: value for key, value in state.items()}
        if prefix and not set(state) & set(own)
        else state
    )


def _common_prefix(state: Mapping[str, Tensor]) -> str | None:
    return next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    looks = len(head) == 9 and head[8:] == b"{" and length < 100_000_000
    return looks or (
        path.suffix == ".safetensors" and _foreign(path) is None and not zipfile.is_zipfile(path)
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged header there may come any
        raise ValueError(f"weights file {path} is damaged ({error}): fetch or write it again") from error


class _Inert:
    """Stands for an object of a pickle that is no tensor: takes whatever it is given and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def _unpickled(path: Path) -> object:
    if foreign := _foreign(path):
        raise ValueError(f"weights file {path} {foreign}")
    inert: dict[str, type] = {}  # name of a class in the pickle -> what is made in its place
    for _ in range(_MOST_CLASSES):
        try:
            known: list[Any] = [(kind, name) for name, kind in inert.items()]
            # Opened here, since torch.load tells a file's format by its name.
            with torch.serialization.safe_globals(known), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except (
            Exception
        ) as error:  # a damaged pickle may end in any: KeyError, IndexError, AttributeError ...
            name = _GLOBAL.search(str(error))
            if name is not None and name[1] not in inert and "blocked" not in str(error):
                inert[name[1]] = type(name[1], (_Inert,), {})
                continue
            if (container := _CONTAINER.search(str(error))) and issubclass(
                inert.get(container[2], int), _Inert
            ):
                inert[container[2]] = collections.OrderedDict if container[1] == "SETITEM" else list
                continue
            what = f"holds {name[1]}" if name else "is damaged or holds more than tensors"
            raise ValueError(
                f"weights file {path} {what}, which fastanc does not execute: fetch it again, or save its state dict"
                " alone with torch.save(network.state_dict(), 'weights.pth')"
            ) from error
    raise ValueError(f"weights file {path} holds too many classes: save its state dict alone")


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
    return _foreign_zip(path) if head.startswith(b"PK\x03\x04") else None


def _foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except Exception:  # cut or damaged, in whatever way: torch.load is to say so
        return None
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        line = f"torch.save(torch.jit.load({os.fspath(path)!r}).state_dict(), 'weights.pth')"
        return f"is a TorchScript program: save its tensors with {line}"
    if any(re.search(r"serialized_exported_program|archive_format|models/.*\.json", name) for name in names):
        line = f"torch.save(torch.export.load({os.fspath(path)!r}).state_dict, 'weights.pth')"
        return f"is a program of torch.export: save its tensors with {line}"
    if "data.pkl" in names:
        return None
    return "is a zip of something else: unpack it and name the file of weights in it"


def _chosen(path: Path, content: object, key: str | None) -> Weights:
    found = dict(_state_dicts(content))
    if not found:
        kind = f"holds a {type(content).__name__} and " if isinstance(content, _Inert) else "holds "
        line = f"torch.save(torch.load({os.fspath(path)!r}, weights_only=False).state_dict(), 'weights.pth')"
        advice = f", where you trust the file with {line}" if isinstance(content, _Inert) else ""
        raise ValueError(
            f"weights file {path} {kind}no state dict: save the network's state_dict() alone{advice}"
        )
    named = ", ".join(sorted(name or "(the whole file)" for name in found))
    if key and key not in found:
        raise ValueError(f"weights file {path} has no state dict at weights_key {key}: take one of {named}")
    taken = key if key else _best(list(found))
    if taken is None:
        raise ValueError(
            f"weights file {path} holds several state dicts, {named}: say which with weights_key"
            " (--teacher.weights_key, --student.weights_key)"
        )
    return Weights(found[taken], {}, taken, tuple(name for name in found if name != taken))


def _state_dicts(content: object, at: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every state dict in nested dictionaries with the place of it, keys joined by dots."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    items: dict[str, Any] = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in items.items() if torch.is_tensor(value)}
    if tensors and (len(tensors) == len(items) or any("." in key for key in tensors)):
        yield at, tensors
        return
    for key, value in items.items():
        if not _NOT_WEIGHTS.search(key):
            yield from _state_dicts(value, f"{at}.{key}" if at else key, depth + 1)


def _best(places: list[str]) -> str | None:
    """Return the place that is meant when nobody says it, or None where that would be a guess."""
    averages = [place for place in places if _AVERAGE.search(place)]
    if len(places) == 1 or len(averages) == 1:
        return (averages or places)[0]
    usual = [place for place in places if place.split(".")[-1] in _USUAL and "." not in place]
    return usual[0] if len(usual) == 1 and not averages else None
