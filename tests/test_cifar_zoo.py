"""The CIFAR-100 comparisons' networks: their sizes, and their published checkpoints' outputs beside formulas."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from fastanc.methods.base import spec_of
from fastanc.methods.reviewkd import ReviewKd
from fastanc.models.zoo import build, load_weights, own_classes, save_weights
from support.published_cifar import FORMULAS, State

PRINTED = {  # million parameters at 100 classes; Tian et al. 2020 and mdistiller print none, those who follow do
    "cifar_resnet8": 0.08,
    "cifar_resnet14": 0.18,
    "cifar_resnet20": 0.28,
    "cifar_resnet32": 0.47,
    "cifar_resnet44": 0.67,
    "cifar_resnet56": 0.86,
    "cifar_resnet110": 1.74,
    "cifar_resnet8x4": 1.23,
    "cifar_resnet32x4": 7.43,
    "cifar_resnet50_bottleneck": 23.71,
    "wrn-16-1": 0.18,
    "wrn-16-2": 0.70,
    "wrn-40-1": 0.57,
    "wrn-40-2": 2.26,
    "cifar_vgg8": 3.97,
    "cifar_vgg11": 9.28,
    "cifar_vgg13": 9.46,
    "cifar_vgg16": 14.77,
    "cifar_vgg19": 20.09,
    "cifar_mobilenetv2": 0.81,
    "cifar_shufflenetv1": 0.95,
    "cifar_shufflenetv2": 1.36,
}
DEEP = ("cifar_resnet44", "cifar_resnet110", "cifar_vgg16", "cifar_vgg19")
QUICK = [name for name in FORMULAS if name not in DEEP]


def images() -> torch.Tensor:
    """Return four images of other brightness, so that they are told apart behind a pooling, too."""
    even = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return even ** torch.tensor([0.3, 3.0, 1.0, 8.0], dtype=torch.float64).view(4, 1, 1, 1)


def drawn(name: str, classes: int) -> tuple[State, torch.Tensor]:
    """Return a published layout with weights, and the outputs that these give on standardised images."""
    state = State()
    mean = torch.tensor([0.5071, 0.4867, 0.4408], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2675, 0.2565, 0.2761], dtype=torch.float64).view(3, 1, 1)
    return state, FORMULAS[name](state, (images() - mean) / std, classes)


@pytest.mark.parametrize("name", FORMULAS)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = build(name, num_classes=100)
    own = sum(weight.numel() for weight in network.parameters())
    assert round(own / 1e6, 2) == PRINTED[name]
    if name in QUICK:
        state, _ = drawn(name, 100)
        learnt = [key for key in state if "running" not in key and "tracked" not in key]
        assert own == sum(state[key].numel() for key in learnt)


@pytest.mark.parametrize("name", QUICK)
def test_a_published_checkpoint_gives_the_outputs_of_its_formula(name: str, tmp_path: Path) -> None:
    state, expected = drawn(name, 7)
    path = tmp_path / "ckpt_epoch_240.pth"
    content = {"epoch": 240, "model": dict(state), "best_acc": torch.tensor(72.5), "opt": Namespace(lr=0.05)}
    torch.save(content, path)
    given = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)} if "wrn" in name else {}
    network = build(name, num_classes=7, weights=path, stages="auto", **given).double().eval()
    assert network.bare.state_dict().keys() == state.keys() or "wrn" in name
    with torch.no_grad():
        out = network(images())
    # The normalisation and the file's weights went through fp32.
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    head = network.head
    torch.testing.assert_close(out.features @ head.weight.T + head.bias, out.logits)
    assert len(out.stages) == len(state.maps)
    for mine, theirs in zip(out.stages, state.maps):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert own_classes(name, path) == 7
    assert float((expected[0] - expected[1]).abs().max()) > 0.1 * float(expected.abs().max())  # images count


def test_a_file_of_our_own_and_one_in_parallel_load_as_well(tmp_path: Path) -> None:
    state, _ = drawn("wrn-16-1", 7)
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "parallel.pth")
    network = build("wrn-16-1", num_classes=7, weights=tmp_path / "parallel.pth")
    save_weights(network, tmp_path / "ours.safetensors")
    again = load_weights(tmp_path / "ours.safetensors")
    for key, value in network.bare.state_dict().items():
        assert torch.equal(value, again.bare.state_dict()[key]), key
    assert torch.equal(network.bare.bn.weight, state["bn1.weight"].float())
    assert torch.equal(
        network.bare.layer2[0].shortcut.weight, state["block2.layer.0.convShortcut.weight"].float()
    )


def test_a_checkpoint_of_another_depth_is_refused(tmp_path: Path) -> None:
    for name, other in (
        ("cifar_resnet8x4", "cifar_resnet14"),
        ("wrn-16-1", "wrn-16-2"),
        ("wrn-40-1", "wrn-16-1"),
    ):
        torch.save({"model": dict(drawn(name, 7)[0])}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match="does not fit"):
            build(other, num_classes=7, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifar_resnet9", "depth 9 does not exist"),
        ("cifar_vgg12", "take one of 8, 11, 13, 16, 19"),
        ("cifar_resnet1000000", "too deep"),
        ("cifar_mobilenet", "did you mean cifar_mobilenetv2"),
    ],
)
def test_names_without_a_network_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(name, num_classes=2)


PAIRS = [  # Tian et al. 2020, tables 1 and 2
    ("wrn-40-2", "wrn-16-2"),
    ("wrn-40-2", "wrn-40-1"),
    ("cifar_resnet56", "cifar_resnet20"),
    ("cifar_resnet110", "cifar_resnet32"),
    ("cifar_resnet32x4", "cifar_resnet8x4"),
    ("cifar_vgg13", "cifar_vgg8"),
    ("cifar_vgg13", "cifar_mobilenetv2"),
    ("cifar_resnet50_bottleneck", "cifar_mobilenetv2"),
    ("cifar_resnet50_bottleneck", "cifar_vgg8"),
    ("cifar_resnet32x4", "cifar_shufflenetv1"),
    ("cifar_resnet32x4", "cifar_shufflenetv2"),
    ("wrn-40-2", "cifar_shufflenetv1"),
]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_methods_that_pair_stages_take_every_published_pair(teacher: str, student: str) -> None:
    with torch.device("meta"):
        large, small = (build(name, num_classes=100, stages="auto") for name in (teacher, student))
        players = ReviewKd().networks(small, spec_of(large))
    assert len(large.stage_channels()) == len(small.stage_channels())
    assert "student" in players


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "cifar_vgg8", "cifar_mobilenetv2", "cifar_shufflenetv1", "cifar_shufflenetv2"]
)
def test_every_weight_learns_and_channels_last_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, num_classes=5, in_channels=1).double()
    x = torch.rand(4, 1, 32, 32, dtype=torch.float64)
    out = network(x).logits
    out.square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key
    turned = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(turned, out)
