"""Image classifiers of transformers: a folder that it saved, or a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastanc.models.builder_arguments import built_with
from fastanc.models.libraries import Bare, Shape, check_fit
from fastanc.models.names import HF, HF_UNTRAINED
from fastanc.models.published import answers, hub_url, only_cached

_PREPROCESSOR, _CARD = "preprocessor_config.json", "README.md"


def from_hub(
    name: str, rest: str, shape: Shape, kwargs: Mapping[str, Any], *, new_head: bool, load: bool
) -> Bare:
    """Return the classifier in a folder or repository, whose weights are left out without `load`; see `zoo.build`.

    Code that lies beside weights is never run.
    """
    config = read_config(name)
    auto = _transformers().AutoModelForImageClassification
    if load:
        check_fit(name, shape, config.num_labels, new_head=new_head)
        options = {"num_labels": shape.num_classes, "ignore_mismatched_sizes": True} if new_head else {}
        with _reached(rest):
            make = partial(auto.from_pretrained, rest, trust_remote_code=False, **options)
            try:
                network = built_with(name, make, kwargs)
            except OSError as error:
                raise FileNotFoundError(_absent(name, error)) from error
    else:
        network = built_with(name, partial(_untrained, config, shape), kwargs)
    assert isinstance(network, nn.Module)
    views = _preprocessor(rest)
    size = getattr(config, "image_size", None)
    source = f"its {_PREPROCESSOR}" + (f" ({size} px)" if isinstance(size, int) else "")
    return Bare(
        network.eval(),
        views.get("image_mean"),
        views.get("image_std"),
        size if isinstance(size, int) else None,
        source,
        licence_of(rest),
    )


def read_config(name: str) -> Any:
    """Return the configuration of a folder or repository; FileNotFoundError or ValueError in one sentence."""
    rest = name.partition(":")[2]
    with _reached(rest):
        try:
            return _transformers().AutoConfig.from_pretrained(rest, trust_remote_code=False)
        except OSError as error:
            raise FileNotFoundError(_absent(name, error)) from error
        except Exception as error:  # of a kind that it does not know, or no configuration at all
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise ValueError(
                f"{name} is no network that transformers reads ({said}): name another"
            ) from error


def _untrained(config: Any, shape: Shape, **kwargs: Any) -> nn.Module:
    config.num_labels, config.num_channels = shape.num_classes, shape.in_channels
    if unknown := [key for key in kwargs if not hasattr(config, key)]:
        raise TypeError(f"{type(config).__name__} has no {unknown[0]}")
    config.update(kwargs)
    network = _transformers().AutoModelForImageClassification.from_config(config)
    assert isinstance(network, nn.Module)
    return network


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("networks of hf: need transformers: pip install 'fastanc[hf]'") from error
    return transformers


def _reached(rest: str) -> Any:
    """Let transformers look into its cache alone where the network is a folder, or where the hub does not answer."""
    return only_cached(enabled=Path(rest).is_dir() or not answers(hub_url(rest)))


def _absent(name: str, error: Exception) -> str:
    rest = name.partition(":")[2]
    return (
        f"{name} is no folder with a config.json and weights, and could not be fetched ({type(error).__name__}):"
        f" correct the path, or connect to the network once, or fetch {hub_url(rest)} elsewhere and name its folder"
    )


def _text(rest: str, file: str) -> str:
    """Return a small file beside the weights; an empty text where there is none."""
    path = Path(rest) / file
    if not Path(rest).is_dir():
        from transformers.utils import cached_file

        with _reached(rest):
            found = cached_file(rest, file, _raise_exceptions_for_missing_entries=False)
        if found is None:
            return ""
        path = Path(found)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _preprocessor(rest: str) -> dict[str, Any]:
    text = _text(rest, _PREPROCESSOR)
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"{_PREPROCESSOR} of {rest} is no JSON: mend it, or give mean and std") from error
    return found if isinstance(found, dict) else {}


def licence_of(rest: str) -> str:
    """Return what the head of a model card says of the licence."""
    head = re.match(r"---\n(.*?)\n---", _text(rest, _CARD), re.DOTALL)
    said = re.search(r"^license: *(\S+)", head.group(1), re.MULTILINE) if head else None
    return f"{said.group(1)} by its model card" if said else ""


def classes_of(name: str) -> int | None:
    """Return how many classes a name of hf: knows, None for another name."""
    return int(read_config(name).num_labels) if name.startswith((f"{HF}:", f"{HF_UNTRAINED}:")) else None


def names_of(name: str) -> list[str]:
    """Return the names of the classes of a folder or repository; none where it counts them only."""
    config = read_config(name)
    names = [str(config.id2label.get(k, "")) for k in range(int(config.num_labels))]
    counted = all(label in ("", f"LABEL_{k}") for k, label in enumerate(names))
    return [] if counted else names
