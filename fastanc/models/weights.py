"""Weights: fitting them into networks, writing safetensors, and the digests that identify weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fastanc.files import written
from fastanc.models.taps import Adapted, Tapped, Wrapper, unwrapped
from fastanc.models.weight_files import read_metadata, read_weights

__all__ = [
    "FIELDS",
    "check_fit",
    "fit_weights",
    "head_digest",
    "read_fields",
    "read_metadata",
    "read_weights",
    "save_weights",
    "weights_digest",
    "write_safetensors",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FIELDS = ("name", "num_classes", "in_channels", "image_px", "mean", "std", "head_name")
"""What a file of ours says of its network, each as JSON in the safetensors metadata."""


def read_fields(
    path: str | os.PathLike[str], metadata: Mapping[str, str], fields: Sequence[str]
) -> dict[str, Any]:
    """Return the values of some `FIELDS` in a file's metadata; ValueError where one is missing or no JSON."""
    try:
        return {field: json.loads(metadata[field]) for field in fields}
    except (KeyError, ValueError) as error:
        raise ValueError(f"weights file {os.fspath(path)} is damaged: fetch or write it again") from error


def fit_weights(
    network: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str], without: str | None = None
) -> None:
    """Load a state dict into a bare network, in place; `without` names a module that keeps its own weights.

    Raises ValueError with the first differing keys and shapes, or the first tensor that is no plain float.
    """
    own = network.state_dict()
    if without:
        own = {key: value for key, value in own.items() if not key.startswith(f"{without}.")}
        state = {key: value for key, value in state.items() if not key.startswith(f"{without}.")}
    for key in own:
        if key in state and (unlike := _unlike(state[key], own[key])):
            raise ValueError(f"weights file {os.fspath(path)}: {key} {unlike}")
    check_fit(state, own, path, list(own))
    network.load_state_dict(state, strict=False)


def check_fit(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    shaped: Sequence[str],
) -> None:
    """Raise ValueError with the first keys that differ from a network's own, and the first shapes of some."""
    problems = []
    # BatchNorm's step counters were not always part of a state dict.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in own]
    if missing:
        problems.append(f"it lacks {_first(missing)}")
    if surplus:
        problems.append(f"the network lacks {_first(surplus)}")
    for key in shaped:
        if key in state and own[key].shape != state[key].shape:
            there, here = list(state[key].shape), list(own[key].shape)
            problems.append(f"{key} is {there} in the file and {here} in the network")
    if problems:
        raise ValueError(
            f"weights file {os.fspath(path)} does not fit: {'; '.join(problems[:3])}; "
            "name the network that it was made with"
        )


def _unlike(value: Tensor, own: Tensor) -> str | None:
    """Return what is said of a tensor that torch would copy into the network's as other numbers, or not at all."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
        kind = "quantised" if value.is_quantized else "without values" if value.is_meta else str(value.layout)
        return f"is {kind.removeprefix('torch.')} and no plain tensor: save it dense, as float32"
    # Counters of steps come as floats where a whole state dict was halved.
    whole = not (own.is_floating_point() or own.is_complex())
    fits = value.dtype in _FLOATS or (whole and not value.is_complex() and not value.is_floating_point())
    if fits or value.dtype == own.dtype:
        return None
    there, here = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own.dtype))
    return f"is {there} in the file and {here} in the network: save it as float32, as it was before"


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def save_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the bare network's weights as safetensors, with what `zoo.load_weights` needs to build it again.

    An adapter, a regressor and estimators are dropped. The file appears whole or not at all.
    """
    tapped = unwrapped(network)
    state = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in tapped.bare.state_dict().items()
    }
    metadata = {field: json.dumps(getattr(tapped, field)) for field in FIELDS}
    if tapped.kwargs:
        metadata["kwargs"] = json.dumps(tapped.kwargs)
    write_safetensors(path, state, metadata)


def write_safetensors(
    path: str | os.PathLike[str], state: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors so that the file appears whole or not at all, and equal ones are equal bytes."""
    data = save(state, metadata)
    # The library writes the header's keys in an order that differs between processes.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with written(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(data)[end:])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Return the sha256 over the sorted state dict and the other buffers (a Tapped's normalisation)."""
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    return _digest({_digested_name(module, key): tensor for key, tensor in tensors.items()})


def _digested_name(module: nn.Module, key: str) -> str:
    """Return a key as it was when every wrapper's network was `network`, since caches are known by digests."""
    if not isinstance(module, Wrapper) or not key.startswith(f"{module.holds}."):
        return key
    inner = getattr(module, module.holds)
    return "network." + _digested_name(inner, key.removeprefix(f"{module.holds}."))


def head_digest(network: Tapped | Adapted) -> str | None:
    """Return the sha256 over the head's weights, or None without a head."""
    return None if network.head is None else _digest(network.head.state_dict())
