"""The student is tried on a batch of the run's shape: one sentence where it cannot be, and nothing moves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastanc
from fastanc.models.probe import checked
from fastanc.models.taps import Tapped
from fastanc.models.zoo import build, tap
from fastanc.teacher.online import Online
from fastanc.training.trial import try_student, try_teacher
from support.tiny_run import LENETS, as_words


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


def test_a_teacher_that_overflows_in_its_precision_is_one_sentence() -> None:
    network = build("resnet8", num_classes=4).eval()
    with torch.no_grad():
        network.bare.fc.weight.mul_(1e6)
    try_teacher(Online(network), 4, 3, 32)  # sound in fp32
    with pytest.raises(
        ValueError, match="teacher resnet8 gives numbers that are not finite: set teacher.precision"
    ):
        try_teacher(Online(network, torch.float16), 4, 3, 32)


@pytest.mark.parametrize(
    "end", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()], ids=lambda end: type(end).__name__
)
def test_a_teacher_that_gives_probabilities_is_refused(end: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5), end)
    online = Online(tap(network, image_px=8).eval())
    if not isinstance(
        end, nn.Softmax
    ):  # the logarithms are logits too; independent sigmoids are no distribution
        try_teacher(online, 4, 3, 8)
        return
    with pytest.raises(ValueError, match="gives probabilities, whose sum is 1"):
        try_teacher(online, 4, 3, 8)


class Says(nn.Module):
    """A classifier that returns its logits in some wrapping."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(3, 4), wrap

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.fc(images.mean((2, 3))))


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z}, lambda z: (z, None), lambda z: [z]])
def test_logits_in_a_known_wrapping_are_found(wrap: Callable[[Tensor], object]) -> None:
    assert tap(Says(wrap), image_px=8).num_classes == 4


@pytest.mark.parametrize(
    "wrap", [lambda z: {"out": z}, lambda z: ({"out": z},), lambda z: (), lambda z: None]
)
def test_a_network_that_gives_no_logits_is_named(wrap: Callable[[Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"Says does not return logits \[B, K\]"):
        tap(Says(wrap), image_px=8)
    tapped = Tapped(Says(wrap), mean=(0.5,) * 3, std=(0.5,) * 3, name="says", image_px=8)
    with pytest.raises(ValueError, match="says gives a .* for two images and no logits"):
        checked(tapped)


SPARE = """
from torch import nn
import fastanc

@fastanc.register_network("spare")
class Spare(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spare", "torchvision:googlenet"])
def test_two_processes_train_a_student_with_weights_that_nothing_uses(tmp_path: Path, name: str) -> None:
    (tmp_path / "spare.py").write_text(SPARE)
    launch = Path(fastanc.__file__).parent / "recipes" / "launch" / "cpu2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(launch), "-m", "fastanc.train", "--plugin", str(tmp_path / "spare.py")]
    fields = {**LENETS, "student.name": name, "run.name": "two", "run.max_steps": "3", "data.batch": "8"}
    fields |= {"data.name": "digits", "method.type": "kd"}
    done = subprocess.run(
        [*command, *as_words(fields)], cwd=tmp_path, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "logits do not depend on " in done.stdout + done.stderr
    assert "weights agree on all 2 processes" in done.stdout + done.stderr
