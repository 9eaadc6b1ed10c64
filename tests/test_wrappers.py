"""What lies around a network: its digests and its state dicts are those of files that are older than its names."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.ksanc_teacher import KsancTeacher
from fastanc.models.regressor import Regressed
from fastanc.models.taps import Adapted, Tapped, unwrapped
from fastanc.models.zoo import build, head_digest, weights_digest

EXACT = {"num_classes": 4, "mean": (0.5, 0.25, 0.5), "std": (0.25, 0.5, 0.125)}


def filled(module: nn.Module) -> nn.Module:
    """Set every weight to a fraction that float32 holds exactly, so that every machine has the same bits."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_((torch.arange(tensor.numel()) % 101 / 64 - 0.75).view(tensor.shape))
    return module


def test_digests_are_those_of_the_caches_on_disk() -> None:
    """Caches and estimators are known by them; these were taken when every wrapper's network was `network`."""
    network = filled(build("resnet8", **EXACT))
    assert weights_digest(network) == "b32e9a3791e5b23cba66af46223d135264885e4f045d9021c658eed349d9a375"
    assert head_digest(network) == "25b9c4f790de6d539d1c6a12418bd5cfba55c856d8ded9ec63627b641cabc6f6"
    adapted = filled(Adapted(network, 5))
    assert weights_digest(adapted) == "d39718d0f7e4d1d67fcca14659141e562bfd64f0257e4e8dd30047f82d7159e3"
    library = filled(build("torchvision:resnet18", **EXACT))
    assert weights_digest(library) == "1698414c52681b9ca7759dc5d460df8b0eda3c1f5997610850866a8e84761724"
    assert head_digest(library) == "1d54ffef38dc81653ed913a81ed2e75ed6db8f8cc6c9eae525a470f3bcf05def"


def _plain() -> Tapped:
    return build("resnet8", num_classes=4, stages="auto")


WRAPPERS = {
    "tapped": _plain,
    "adapted": lambda: Adapted(_plain(), 5),
    "regressed": lambda: Regressed(_plain(), 1, nn.Conv2d(32, 7, 1)),
    "squeezed": lambda: Squeezed(network := _plain(), estimators_for(network)),
    "ksanc_teacher": lambda: KsancTeacher(_plain()),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_state_dict_with_the_old_names_loads(kind: str) -> None:
    make = WRAPPERS[kind]
    wrapped, other = make(), make()
    old = {
        key.replace("student.", "network.").replace("bare.", "network."): value
        for key, value in wrapped.state_dict().items()
    }
    assert not any(key in old for key in wrapped.state_dict() if "bare." in key)
    given = dict(old)
    for twin in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        twin.load_state_dict(given)
        assert weights_digest(twin) == weights_digest(wrapped)
    assert given.keys() == old.keys()
    assert isinstance(unwrapped(other), Tapped)
    strange = {**old, "network.surplus": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="surplus"):
        other.load_state_dict(strange)


def test_a_network_that_has_a_part_called_network_keeps_it() -> None:
    part = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    tapped = Tapped(nn.Sequential(), head=None, mean=[0] * 3, std=[1] * 3, num_classes=2)
    tapped.bare.add_module("network", part)
    assert list(tapped.state_dict()) == ["bare.network.1.weight", "bare.network.1.bias"]
    tapped.load_state_dict({key: value + 1 for key, value in tapped.state_dict().items()})
    tapped.load_state_dict({f"network.{key}": value for key, value in tapped.bare.state_dict().items()})
