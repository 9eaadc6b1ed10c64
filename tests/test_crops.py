"""data.crop: how training views are cut, whatever the set is stored as; a field that does nothing is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastanc.parsing import configure, parse
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.stored import stored_for
from fastanc.pipelines.torch_set import TorchSet
from fastanc.pipelines.views import PadCrop, RandomResizedCrop
from fastanc.training.assemble_input import open_input
from fastanc.training.assemble_networks import Given
from support.images import encoded, jpeg, put

PROCESS: Any = SimpleNamespace(
    device=torch.device("cpu"), process_index=0, num_processes=1, is_main_process=True
)
PX = 32


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve pictures of 32 px, as PNG, whose pixels every decoder agrees on, and one of another size."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, PX, PX, 3), np.uint8)
    files = {f"{'ab'[k % 2]}/{k:02d}.png": encoded(Image.fromarray(p), "PNG") for k, p in enumerate(pictures)}
    return put(tmp_path / "set" / "train", files).parent


def opened(name: object, *words: str, given: Given | None = None) -> Any:
    fixed = [
        *([] if "--recipe" in words else ["--recipe", "digits_anc"]),
        "--data.image_px",
        str(PX),
        "--data.resize_px",
        str(PX),
        "--data.batch",
        "4",
        "--data.views",
        "2",
    ]
    return open_input(parse(["--data.name", str(name), *fixed, *words]), PROCESS, given or Given())


def test_a_tree_of_small_images_has_padded_crops(tree: Path) -> None:
    source = opened(tree, "--data.crop", "padded", "--data.pad", "3")
    assert source.rule == PadCrop(PX, 0, 3, False)
    assert isinstance(source.train, ArraySet)
    by_hand = {path.name: np.asarray(Image.open(path).convert("RGB")) for path in tree.glob("train/*/*.png")}
    plain = opened(tree).train
    assert isinstance(plain, JpegSet)
    names = [plain.index.name(i).partition("/")[2] for i in range(plain.num_images)]
    batch = next(source.batches(0, 1))
    boxes, _ = source.rule.boxes(batch.index, batch.view, np.full((4, 2), PX))
    for k, i in enumerate(batch.index.tolist()):
        padded = np.pad(by_hand[names[i]], ((3, 3), (3, 3), (0, 0)))
        x, y = boxes[k, :2].tolist()
        assert np.array_equal(batch.images[k].permute(1, 2, 0).numpy(), padded[y : y + PX, x : x + PX])


def test_images_of_other_sizes_are_scaled_for_padded_crops(tmp_path: Path) -> None:
    tree = put(tmp_path / "set", {f"{c}/{k}.jpg": jpeg(k, (60 + k, 50)) for c in "ab" for k in range(5)})
    source = opened(tree, "--data.crop", "padded")
    assert isinstance(source.train, ArraySet)
    assert source.train.images.shape[1:] == (PX, PX, 3)
    assert next(source.batches(0, 1)).images.shape == (4, 3, PX, PX)


def test_arrays_have_resized_crops(tree: Path) -> None:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (16, 40, 40, 3), np.uint8), np.arange(16) % 2
    data = as_dataset((images, labels))
    given = Given(train=data, val=data)
    source = opened("own", "--data.crop", "resized", "--data.min_scale", "0.3", given=given)
    assert isinstance(source.train, TorchSet)
    assert isinstance(source.val, TorchSet)
    assert source.rule == RandomResizedCrop(PX, 0, scale=(0.3, 1.0), flip=False)
    batch = next(source.batches(0, 1))
    boxes, _ = source.rule.boxes(batch.index, batch.view, np.full((4, 2), 40))
    assert batch.labels is not None
    assert batch.labels.tolist() == labels[batch.index].tolist()
    for k, i in enumerate(batch.index.tolist()):
        x, y, w, h = boxes[k].tolist()
        part = torch.from_numpy(images[i]).permute(2, 0, 1)[None, :, y : y + h, x : x + w]
        expected = torch.nn.functional.interpolate(part, (PX, PX), mode="bilinear", antialias=True)[0]
        assert torch.equal(batch.images[k], expected)
    assert next(source.val_batches()).images.shape[2:] == (PX, PX)


def test_auto_is_what_was_the_rule_before(tree: Path) -> None:
    assert isinstance(opened(tree).rule, RandomResizedCrop)
    data = as_dataset((np.zeros((16, PX, PX, 3), np.uint8), np.arange(16) % 2))
    assert stored_for(data, "auto", PX) is data
    assert isinstance(opened("own", given=Given(train=data, val=data)).rule, PadCrop)


def test_a_field_that_does_nothing_is_refused_by_name(tree: Path) -> None:
    for words, said in (
        (["--data.pad", "2"], r"data\.pad does nothing with resized crops .data\.crop padded"),
        (
            ["--data.crop", "padded", "--data.min_scale", "0.5"],
            r"data\.min_scale does nothing with padded crops",
        ),
        (["--data.crop", "padded", "--data.decode", "cpu"], r"data\.decode does nothing with set, whose"),
        (
            ["--data.steps_per_epoch", "9"],
            r"data\.steps_per_epoch does nothing with a method that trains on images",
        ),
        (["--data.crop", "random"], r"data\.crop is 'random': it takes one of auto, resized, padded"),
        (["--data.batch", "64"], r"data\.batch 64 needs 64 images but the set has 10: lower data\.batch"),
    ):
        with pytest.raises(ValueError, match=said):
            opened(tree, *words)
    recipe = ["--recipe", "own_data", "--data.crop", "padded"]  # whose min_scale nobody here asked for
    assert isinstance(opened(tree, *recipe).rule, PadCrop)
    assert configure("own_data", {"data.min_scale": 0.5}).said == {"data.min_scale"}


def test_too_many_images_for_the_memory_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastanc.pipelines import stored

    monkeypatch.setattr(stored, "MOST_BYTES", 1 << 10)
    with pytest.raises(ValueError, match=r"data\.crop padded holds all images in memory"):
        opened(tree, "--data.crop", "padded")
