"""Files of weights of any source: which tensors in them are the network's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastanc.models.tensor_files import Inert, is_safetensors, read_safetensors, unpickled

_PREFIXES = ("module.", "bare.", "student.", "network.", "_orig_mod.", "model.", "net.")
_USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module")
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?)($|[._])")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|criterion|loss|hyper|callback|config|args", re.IGNORECASE)
_ARRAY = "numpy array"
_DEEPEST, _FEW = 4, 6


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
    if is_safetensors(path):
        state, metadata = read_safetensors(path)
        if key:
            raise ValueError(f"weights file {path} has no parts to choose from: leave weights_key out")
        found = Weights(state, metadata, "", ())
    else:
        found = _chosen(path, unpickled(path), key)
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


def _chosen(path: Path, content: object, key: str | None) -> Weights:
    found = dict(_state_dicts(content))
    if not found:
        raise ValueError(f"weights file {path} {_without_state_dict(path, content)}")
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


def _without_state_dict(path: Path, content: object) -> str:
    """Return what a file holds instead, and how to save its weights."""
    if isinstance(content, Inert):
        line = f"torch.save(torch.load({os.fspath(path)!r}, weights_only=False).state_dict(), 'weights.pth')"
        return (
            f"holds a {type(content).__name__} and no state dict: save the network's state_dict() alone,"
            f" where you trust the file with {line}"
        )
    if not isinstance(content, Mapping):
        return f"holds {_kind(content)} and no state dict: save the network's state_dict() alone"
    what = [f"{key} ({_kind(value)})" for key, value in list(content.items())[:_FEW]]
    more = f" and {len(content) - _FEW} more" if len(content) > _FEW else ""
    advice = "the network's state_dict() alone"
    if any(_ARRAY in said for said in what):
        advice = "the arrays as tensors, {key: torch.as_tensor(value), ...}, with torch.save"
    return f"holds no state dict but {', '.join(what) or 'nothing'}{more}: save {advice}"


def _kind(value: object) -> str:
    """Return in words what a value of a checkpoint is."""
    if isinstance(value, Inert):
        name = type(value).__name__
        return _ARRAY if re.fullmatch(r"numpy\..*\._(reconstruct|frombuffer)", name) else name
    if isinstance(value, Mapping) and len(kinds := {_kind(inner) for inner in value.values()}) == 1:
        return f"dict of {kinds.pop()}"
    return type(value).__name__


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
