"""The student is tried on a batch of the run's shape: one sentence where it cannot be, and nothing moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastanc.models.taps import Tapped
from fastanc.models.zoo import build
from fastanc.training.trial import try_student


def test_nothing_moves() -> None:
    torch.manual_seed(3)
    network = build("wrn-10-1-drop0.3", num_classes=4).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    assert try_student(network, 8, 3, 32) == ()
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert network.training


def test_weights_that_no_output_needs_are_frozen_and_said() -> None:
    network = build("torchvision:googlenet", num_classes=4, image_px=96).train()
    network.bare.spare = nn.Linear(2, 2)
    (said,) = try_student(network, 4, 3, 96)
    assert "do not depend on bare.aux1.conv.conv.weight" in said
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert {"bare.spare.weight", "bare.spare.bias"} <= frozen
    assert all(name.split(".")[1] in ("spare", "aux1", "aux2") for name in frozen)


@pytest.mark.parametrize(("images", "px"), [(1, 64), (4, 32)])
def test_a_batch_that_it_cannot_be_trained_on_is_one_sentence(images: int, px: int) -> None:
    layers = [
        nn.Conv2d(3, 4, 40 if px == 64 else 33),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    ]
    network = Tapped(nn.Sequential(*layers, nn.Linear(4, 5)), mean=(0.5,) * 3, std=(0.5,) * 3, image_px=px)
    with pytest.raises(
        ValueError, match=rf"trained on {images} images? of {px} x {px} .*data.batch or data.image_px"
    ):
        try_student(network.train(), images, 3, px)


def test_logits_that_are_not_finite_and_nothing_to_train_are_one_sentence() -> None:
    network = build("resnet8", num_classes=4).train()
    with torch.no_grad():
        network.bare.fc.bias[1] = float("inf")
    with pytest.raises(ValueError, match="resnet8 gives logits that are not finite"):
        try_student(network, 2, 3, 32)
    with pytest.raises(ValueError, match="resnet8 has no weights to train"):
        try_student(network.requires_grad_(False), 2, 3, 32)
