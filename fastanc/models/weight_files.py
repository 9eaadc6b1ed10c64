"""Files of weights of any source: which tensors in them are the network's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastanc.models.other_names import translated
from fastanc.models.tensor_files import Inert, is_safetensors, read_header, read_safetensors, unpickled

_PREFIXES = ("module.", "bare.", "student.", "network.", "_orig_mod.", "model.", "net.")
_USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module")
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|shadow)($|[._])")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|criterion|loss|hyper|callback|config|args", re.IGNORECASE)
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
_ARRAY = "numpy array"
_DEEPEST, _FEW, _MANY, _NETWORKS = 4, 6, 12, 3


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


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file without its tensors; nothing for other files."""
    path = _existing(path)
    return read_header(path) if is_safetensors(path) else {}


def read_weights(
    path: str | os.PathLike[str], key: str | None = None, own: Mapping[str, Tensor] | None = None
) -> Weights:
    """Return the state dict in a file of weights.

    Takes safetensors, and what torch.save writes of a state dict or of dictionaries that hold some: at `key`, or the
    only one, or its moving average where there are both, as timm does. `key` may name a module in a state dict, too.
    With the state dict of a network, its `own`, what is under any prefix and has all of its names comes before all
    else, and known names of other projects are translated; without, the prefixes of DataParallel, of Lightning, of
    `Wrapper`s and of torch.compile are cut off.
    Raises FileNotFoundError when there is no file, ValueError when it holds no weights, or several that nothing tells
    apart.
    """
    path = _existing(path)
    metadata: dict[str, str] = {}
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        places = {"": tensors}
    else:
        content = unpickled(path)
        places = dict(_state_dicts(content))
        if not places:
            raise ValueError(f"weights file {path} {_without_state_dict(path, content)}")
    if "head_name" in metadata and not key:  # of ours the keys are bare
        return Weights(places[""], metadata, "", ())
    asked = _at(path, places, key) if key else places
    asked = {place: translated(state, own or {}) for place, state in asked.items()}
    ranks, parts = _fitting(asked, own or {})
    parts = parts or asked
    taken = _best(path, [name for name in parts if not ranks or ranks[name] == max(ranks.values())])
    state = {name: value for name, value in parts[taken].items() if name != _COUNTER}
    while not set(state) & set(own or ()) and (prefix := _common_prefix(state)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    # A part of a state dict is no other one than the whole of it.
    others = [name for name in {**parts, **places} if not f"{taken}.".startswith(f"{name}." if name else "")]
    return Weights(state, metadata, taken, tuple(others))


def _existing(path: str | os.PathLike[str]) -> Path:
    path = weights_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist: correct the path")
    return path


def _at(path: Path, places: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, dict[str, Tensor]]:
    """Return what lies at a key: a whole state dict, or what a prefix in one of them has."""
    if key in places:
        return {key: places[key]}
    for place, state in places.items():
        if key.startswith(place):
            prefix = key.removeprefix(place).removeprefix(".") + "."
            if part := {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}:
                return {key: part}
    known = list(places)
    for place, state in places.items():
        modules = dict.fromkeys(name.split(".")[0] for name in state)
        if len(modules) <= _NETWORKS:  # a layer each would be no help
            known += [f"{place}.{module}" if place else module for module in modules]
    raise ValueError(
        f"weights file {path} has no state dict at weights_key {key}: take one of {_listed(known)}"
    )


def _fitting(
    places: Mapping[str, dict[str, Tensor]], own: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[int, bool]], dict[str, dict[str, Tensor]]]:
    """Return the parts of the state dicts that have every name of a network, and how near each is to its shapes."""
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    ranks: dict[str, tuple[int, bool]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for place, state in places.items():
        ends = [key[: -len(names[0])] for key in state if names and f".{key}".endswith(f".{names[0]}")]
        prefixes = [prefix for prefix in ends if all(prefix + name in state for name in names)]
        for prefix in [""] if "" in prefixes else prefixes:
            part = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
            module = prefix.rstrip(".") if len(part) < len(state) else ""
            title = ".".join(word for word in (place, module) if word)
            same = sum(part[name].shape == own[name].shape for name in names)
            parts[title], ranks[title] = part, (same, part.keys() - {_COUNTER} <= own.keys())
    return ranks, parts


def _common_prefix(state: Mapping[str, Tensor]) -> str | None:
    return next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)


def _listed(places: Iterable[str]) -> str:
    names = sorted(name or "(the whole file)" for name in places)
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


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


def _best(path: Path, places: list[str]) -> str:
    """Return the place that is meant when nobody says it; ValueError where that would be a guess."""
    averages = [place for place in places if _AVERAGE.search(place)]
    if len(places) == 1 or len(averages) == 1:
        return (averages or places)[0]
    usual = [place for place in places if place.split(".")[-1] in _USUAL and "." not in place]
    if len(usual) == 1 and not averages:
        return usual[0]
    raise ValueError(
        f"weights file {path} holds several state dicts, {_listed(places)}: say which with weights_key"
        " (--teacher.weights_key, --student.weights_key)"
    )
