"""A user's own objects as data sets: the same pixels as ours, and whatever cannot be used named by its item."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from fastanc.batch import Batch
from fastanc.pipelines import own_items
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order, Picks, evaluation_picks
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.torch_set import TorchSet
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule
from support.images import encoded, odd_picture, put

N = 24
RULE = RandomResizedCrop(48, seed=11)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Listed(Dataset):
    """Items from a list; a callable one is called."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items, self.asked = items, list[int]()
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        self.asked.append(i)
        item = self.items[i]
        return item() if callable(item) else item


def own(value: Any, name: str | None = "mine", **options: Any) -> DataSet:
    return as_dataset(value, name, progress=False, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs in class folders: lossless, so that every reader has the same pixels."""
    images = {i: odd_picture(i).convert("P") if i == 9 else odd_picture(i) for i in range(N)}
    files = {f"class{i % 3}/{i:03d}.png": encoded(image, "PNG") for i, image in images.items()}
    return put(tmp_path_factory.mktemp("own") / "tree", files)


@pytest.fixture(scope="module")
def ours(tree: Path) -> JpegSet:
    return JpegSet("tree", build_index(tree, workers=1, progress=False), MEAN, STD)


@pytest.fixture(scope="module")
def theirs(tree: Path) -> TorchSet:
    found = own(ImageFolder(str(tree)))
    assert isinstance(found, TorchSet)
    return found


def same(ones: Any, others: Any) -> int:
    """Compare two streams of batches in every field; return how many there were."""
    count = 0
    for one, other in zip(ones, others, strict=True):
        assert one.images.dtype == other.images.dtype == torch.uint8
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images, other.images)
        assert (one.index == other.index).all()
        assert (one.view == other.view).all()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.step == other.step
        count += 1
    return count


# ---- the same pixels


@pytest.mark.parametrize("rule", [RULE, CentreCrop(48, 56), CentreCrop(32, 32)], ids=str)
def test_png_files_are_the_bits_of_a_jpeg_set(ours: JpegSet, theirs: TorchSet, rule: ViewRule) -> None:
    assert (theirs.num_images, theirs.classes, theirs.channels) == (N, ours.classes, 3)
    assert (theirs.mean, theirs.std) == (MEAN, STD)
    assert theirs.labels is not None
    assert (theirs.labels == ours.labels).all()
    assert (theirs.sizes(np.arange(N)) == ours.sizes(np.arange(N))).all()
    picks = evaluation_picks(N, 7)
    assert same(ours.batches(picks, rule), theirs.batches(picks, rule)) == 4


def test_training_batches_are_those_of_a_jpeg_set_from_any_step(ours: JpegSet, theirs: TorchSet) -> None:
    order = Order(N, 8, seed=2)
    assert (
        same(ours.batches(order, RULE, start=5, stop=11), theirs.batches(order, RULE, start=5, stop=11)) == 6
    )
    far = next(theirs.batches(order, RULE, start=10**6))
    assert (far.index == order(10**6).index).all()
    one_thread = theirs.on("cpu", JpegOptions(threads=1, prefetch=1))
    assert same(theirs.batches(order, RULE, stop=3), one_thread.batches(order, RULE, stop=3)) == 3


def test_views_of_one_image_come_from_one_reading(ours: JpegSet, tree: Path) -> None:
    folder = ImageFolder(str(tree))
    asked = Listed([lambda i=i: folder[i] for i in range(N)], classes=folder.classes)
    data, order = own(asked), Order(N, 12, seed=2, views_per_image=3)
    asked.asked.clear()
    assert same(ours.batches(order, RULE, stop=2), data.batches(order, RULE, stop=2)) == 2
    assert sorted(asked.asked) == sorted([*order(0).index[::3].tolist(), *order(1).index[::3].tolist()])


def test_real_jpegs_are_those_of_a_jpeg_set_up_to_the_decoder(real_jpegs: list[Path], tmp_path: Path) -> None:
    for path in real_jpegs[:40]:
        (tmp_path / "set" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path.parent.name / path.name).write_bytes(path.read_bytes())
    ours = JpegSet("real", build_index(tmp_path / "set", workers=1, progress=False), MEAN, STD)
    theirs = own(ImageFolder(str(tmp_path / "set")))
    assert theirs.classes == ours.classes
    farthest = 0.0
    for rule in (RandomResizedCrop(224, 3), CentreCrop(224, 256)):
        picks = [Picks(np.arange(a, a + 10), np.full(10, 4)) for a in range(0, 40, 10)]
        for one, other in zip(ours.batches(picks, rule), theirs.batches(picks, rule), strict=True):
            difference = (one.images.int() - other.images.int()).abs().float()
            farthest = max(farthest, float(difference.mean((1, 2, 3)).max()))
            assert one.labels.tolist() == other.labels.tolist()
    print(f"mean difference of the worst image: {farthest:.4f} levels of 255")
    assert farthest < 1


def test_evaluation_is_torchvision_s_own(theirs: TorchSet, tree: Path) -> None:
    folder, moves = ImageFolder(str(tree)), v2.Compose([v2.Resize(56, antialias=True), v2.CenterCrop(48)])
    for batch in theirs.batches(evaluation_picks(N, 8), CentreCrop(48, 56)):
        for k, i in enumerate(batch.index.tolist()):
            image = folder[i][0]
            if max(image.size) <= 8 * min(image.size):  # longer strips are cut before they are resized
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
                off = (batch.images[k].int() - moves(pixels).int()).abs().max()
                # Without AVX2 torchvision resizes in fp32, and rounds once where the integers are rounded twice.
                assert off <= (0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1)


@pytest.mark.gpu
def test_cuda_batches_are_the_cpu_s(theirs: TorchSet) -> None:
    order = Order(N, 8, seed=2, views_per_image=2)
    held = list(theirs.on("cuda").batches(order, RULE, stop=6))
    assert all(batch.images.is_cuda and batch.labels.is_cuda for batch in held)
    moved = [
        Batch(b.images.cpu(), b.index, b.view, None if b.labels is None else b.labels.cpu(), b.step)
        for b in held
    ]
    assert same(theirs.batches(order, RULE, stop=6), moved) == 6


def test_batches_stay_while_held_and_closing_ends_the_threads(theirs: TorchSet) -> None:
    before = set(threading.enumerate())
    batches = theirs.batches(Order(N, 8), RULE)
    held = [(b.images, b.images.clone()) for b in (next(batches) for _ in range(5))]
    assert all(torch.equal(images, copy) for images, copy in held)
    begun = set(threading.enumerate()) - before
    assert begun
    batches.close()  # type: ignore[attr-defined]
    assert not [thread.name for thread in begun if thread.is_alive()]


def test_a_subset_is_those_images_renumbered(theirs: TorchSet) -> None:
    numbers = np.array([20, 3, 11])
    part = theirs.on("cpu", JpegOptions(threads=1)).subset(numbers)
    picks = [Picks(numbers, np.array([4, 5, 6]))]
    mine = [Picks(np.arange(3), np.array([4, 5, 6]))]
    whole = next(theirs.batches(picks, CentreCrop(32, 40)))
    (batch,) = part.batches(mine, CentreCrop(32, 40))
    assert torch.equal(batch.images, whole.images)
    assert batch.labels is not None
    assert batch.labels.tolist() == whole.labels.tolist()
    assert isinstance(part, DataSet)
    assert (part.num_images, part.classes, part.options) == (3, theirs.classes, JpegOptions(threads=1))
    assert part.describe()["fingerprint"] != theirs.describe()["fingerprint"]
    assert part.subset(np.array([2])).describe() == theirs.subset(np.array([11])).describe()


# ---- what becomes of a value


def test_cifar10_of_torchvision_is_ours(data_root: Path) -> None:
    theirs = CIFAR10(data_root, train=False)
    found, ours = own(theirs, "cifar10"), open_dataset("cifar10", "val", data_root)
    assert isinstance(found, ArraySet)
    assert np.array_equal(found.images, theirs.data)
    assert found.describe() == ours.describe()
    assert found.classes == ours.classes
    assert as_dataset(found) is found


def forms(pixels: np.ndarray) -> dict[str, Any]:
    """The same picture [H, W, C] as every kind of image."""
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    if pixels.shape[2] == 3:
        return {"PIL": Image.fromarray(pixels), "tensor": tensor.contiguous(), "array": pixels}
    flat = pixels[..., 0]
    return {
        "PIL": Image.fromarray(flat),
        "tensor": tensor.contiguous(),
        "array": pixels,
        "flat tensor": tensor[0],
        "flat array": np.asfortranarray(flat),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_and_label_is_read(channels: int) -> None:
    rng = np.random.default_rng(channels)
    shapes = [(50, 40), (50, 40), (30, 61)]
    pictures = [rng.integers(0, 256, (*shape, channels), np.uint8) for shape in shapes]
    labels = [[2, 0, 1], [np.int32(2), np.uint8(0), np.array(1)], list(torch.tensor([2, 0, 1]))]
    prints = set()
    for kind in forms(pictures[0]):
        for given in labels:
            data = own(Listed([(forms(p)[kind], label) for p, label in zip(pictures, given)]))
            assert isinstance(data, TorchSet)
            assert data.labels is not None
            assert data.labels.tolist() == [2, 0, 1]
            assert (data.classes, data.channels) == (["0", "1", "2"], channels)
            (batch,) = data.batches(evaluation_picks(3, 3), CentreCrop(24, 28))
            assert batch.images.shape == (3, channels, 24, 24)
            prints.add(data.describe()["fingerprint"])
    assert len(prints) == 1
    alone = own(Listed([forms(p)["array"] for p in pictures]))
    assert (alone.labels, alone.classes, alone.num_classes) == (None, [], 0)
    assert next(iter(alone.batches(evaluation_picks(3, 3), CentreCrop(24, 28)))).labels is None
    assert alone.describe()["fingerprint"] not in prints


def test_the_fingerprint_sees_pixels_sizes_and_labels() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (20, 30 + i, 3), np.uint8) for i in range(4)]
    changed = [image.copy() for image in images]
    changed[3][19, 32, 2] ^= 1
    turned = [*images[:3], images[3].reshape(33, 20, 3)]
    sets = [zip(images, [0, 1, 0, 1]), zip(images, [0, 1, 1, 1]), zip(changed, [0, 1, 0, 1])]
    sets += [zip(turned, [0, 1, 0, 1])]
    prints = [own(Listed(list(items))).describe()["fingerprint"] for items in sets]
    assert len(set(prints)) == 4
    assert prints[0] == own(Listed(list(zip(images, [0, 1, 0, 1])))).describe()["fingerprint"]


def test_squares_of_one_size_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    items = [(Image.fromarray(image), i % 4) for i, image in enumerate(images)]
    kept = own(Listed(items), threads=3)
    assert isinstance(kept, ArraySet)
    assert np.array_equal(kept.images, images)
    assert isinstance(own(Listed(items), in_memory=False), TorchSet)
    other = (Image.fromarray(images[0][:, :7]), 0)
    for mixed in ([*items[:150], other, *items[150:]], [other, *items], [*items, other]):
        assert isinstance(own(Listed(mixed), threads=3), TorchSet)
    monkeypatch.setattr(own_items, "MOST_BYTES", images.nbytes)
    assert isinstance(own(Listed(items)), ArraySet)
    monkeypatch.setattr(own_items, "MOST_BYTES", images.nbytes - 1)
    large = own(Listed(items))
    assert isinstance(large, TorchSet)
    (batch,) = large.batches([Picks(np.arange(9), np.zeros(9, np.int64))], CentreCrop(8, 8))
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), images[:9])


@pytest.mark.parametrize("as_tensor", [True, False])
def test_arrays_in_every_layout_become_an_array_set(as_tensor: bool) -> None:
    rng = np.random.default_rng(0)
    given: Callable[[np.ndarray], Any] = torch.from_numpy if as_tensor else lambda array: array
    images, labels = rng.integers(0, 256, (9, 8, 8, 3), np.uint8), np.arange(9) % 3
    for layout in (images, np.ascontiguousarray(images.transpose(0, 3, 1, 2))):
        data = own((given(layout), given(labels)))
        assert isinstance(data, ArraySet)
        assert np.array_equal(data.images, images)
        assert data.labels is not None
        assert data.labels.tolist() == labels.tolist()
        assert (data.classes, data.mean, data.std) == (["0", "1", "2"], MEAN, STD)
    alone = own(given(images))
    assert (alone.labels, alone.classes) == (None, [])
    grey = own((given(images[..., 0].copy()), given(labels)))
    assert isinstance(grey, ArraySet)
    assert np.array_equal(grey.images, images[..., :1])
    assert (grey.channels, len(grey.mean), len(grey.std)) == (1, 1, 1)
    assert grey.mean[0] == pytest.approx(np.mean(MEAN))
    assert (
        own(TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels))).labels
        is not None
    )


def test_arrays_that_cannot_be_written_to_are_taken_quietly(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for data in (own(mapped[:, :, :8]), own(Listed([image[:, :8] for image in mapped]), in_memory=False)):
        (batch,) = data.batches(evaluation_picks(4, 4), CentreCrop(8, 8))
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), images[:, :, :8])
    assert [str(warning.message) for warning in recwarn] == []


def test_arrays_that_do_not_fit_are_refused_in_words() -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    with pytest.raises(ValueError, match=r"mine: images must be uint8 0\.\.255, not float32"):
        own((torch.zeros(4, 3, 8, 8), labels))
    with pytest.raises(ValueError, match="mine: images must be square, not 7 x 8 px"):
        own(images[:, :, :7])
    with pytest.raises(
        ValueError, match="mine: labels must be 4 whole numbers, one an image, not float64 .4."
    ):
        own((images, labels / 2))
    with pytest.raises(ValueError, match="mine: labels must be 4 whole numbers"):
        own((images, labels[:3]))
    for wrong in ("folder", {"image": images}, (images, labels, labels), 7, iter([images])):
        with pytest.raises(ValueError, match="mine is a .*: give a DataSet, a torch data set, uint8 images"):
            own(wrong)


@pytest.mark.parametrize("none", [None, -1, float("nan"), np.float32("nan"), np.int64(-1)])
def test_a_missing_label_is_no_class(none: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for labels in ([0, 1, none, 1], [1, 0, none, none]):
        for given in (labels, np.array(labels)):
            with pytest.raises(ValueError, match="item 2 of mine has the label .*, which is none"):
                own((images, given))
        with pytest.raises(ValueError, match="item 2 of mine has no label but the first has one"):
            own(Listed(list(zip(images, labels))))
    for value in (
        (images, [none] * 4),
        (images, np.array([none] * 4)),
        Listed(list(zip(images, [none] * 4))),
    ):
        data = own(value)
        assert (data.labels, data.classes, data.num_images) == (None, [], 4)


def test_labels_of_several_lengths_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="mine: labels must be 2 whole numbers, one an image, not lists"):
        own((np.zeros((2, 8, 8, 3), np.uint8), [[0], [1, 2]]))


def test_classes_and_statistics_are_the_data_sets_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
    items = [(p, i % 2) for i, p in enumerate(pixels)]
    named = Listed(
        items, classes=["cat", "dog", "owl"], mean=torch.tensor([0.1, 0.2, 0.3]), std=[0.4, 0.5, 0.6]
    )
    for data in (own(named), own(Subset(named, [0, 2, 5]))):
        assert (data.classes, data.num_classes) == (["cat", "dog", "owl"], 3)
        assert data.mean == pytest.approx((0.1, 0.2, 0.3))
        assert data.std == (0.4, 0.5, 0.6)
    assert own(named, None).name == "Listed"
    assert own(Listed(items, classes=[("a", "b"), ("c",)], mean=np.mean)).classes == ["0", "1"]
    with pytest.raises(ValueError, match="item 1 of mine has the label 1, which is none of the 1 classes"):
        own(Listed(items, classes=["cat"]))
    with pytest.raises(ValueError, match=r"mine.std is .0\.5.: give one number for each of its 3 channels"):
        own(Listed(items, std=[0.5]))


# ---- what cannot be used


GOOD = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)


def broken() -> Any:
    raise OSError("image file is truncated\n(3 bytes)")


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ((torch.zeros(3, 8, 9), 0), r"is a tensor of torch.float32: give uint8 0..255, without ToTensor"),
        ((np.zeros((8, 9, 3)), 0), r"is an array of float64: give uint8 0..255"),
        ((Image.new("I;16", (9, 8)), 0), r"is a PIL image of mode I;16: convert it to L or RGB"),
        ((Image.new("F", (9, 8)), 0), r"is a PIL image of mode F"),
        (({"x": 1}, 0), r"is a dict: give a PIL image, a uint8 tensor \[C, H, W\] or array \[H, W, C\]"),
        ("image.jpg", r"is a str: give a PIL image"),
        ((GOOD, 0, 1), r"is a tuple of 3: give \(image, label\), or an image alone"),
        ((GOOD, 0.5), r"has the label 0.5: give a whole number"),
        ((GOOD, "cat"), r"has the label 'cat': give a whole number"),
        ((GOOD.transpose(2, 0, 1), 0), r"is an array \[3, 8, 9\]: give uint8 \[H, W, C\] with C 1 or 3"),
        ((torch.zeros(4, 8, 9, dtype=torch.uint8), 0), r"is a tensor \[4, 8, 9\]: give uint8 \[C, H, W\] with"),
        ((np.zeros((0, 9, 3), np.uint8), 0), r"is an array \[0, 9, 3\]"),
        (broken, r"cannot be read \(OSError: image file is truncated \(3 bytes\)\): repair it or leave it out"),
    ],
)  # fmt: skip
def test_an_item_that_cannot_be_used_is_named(item: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^item 70 of mine {sentence}"):
        own(Listed([*[(GOOD, 0)] * 70, item, *[(GOOD, 0)] * 9]), threads=2)
    with pytest.raises(ValueError, match=f"^item 0 of mine {sentence}"):
        own(Listed([item, (GOOD, 0)]))


def test_a_grey_set_takes_no_colour_and_a_colour_set_takes_grey() -> None:
    grey = GOOD[..., 0]
    with pytest.raises(
        ValueError, match="item 1 of mine has 3 channels but the first has 1: convert them all to RGB"
    ):
        own(Listed([(grey, 0), (GOOD, 0)]))
    data = own(Listed([(GOOD, 0), (grey, 0), (Image.fromarray(grey), 0)]))
    (batch,) = data.batches(evaluation_picks(3, 3), CentreCrop(8, 8))
    assert torch.equal(batch.images[1], batch.images[1, :1].expand(3, 8, 8))
    assert torch.equal(batch.images[1], batch.images[2])


def test_all_items_have_labels_or_none_has() -> None:
    with pytest.raises(ValueError, match="item 2 of mine has no label but the first has one"):
        own(Listed([(GOOD, 0), (GOOD, 1), GOOD]))
    with pytest.raises(ValueError, match="item 1 of mine has a label but the first has none"):
        own(Listed([GOOD, (GOOD, 1)]))
    with pytest.raises(ValueError, match="mine holds no items"):
        own(Listed([]))


def test_random_transforms_are_found_out(tree: Path) -> None:
    flipped = ImageFolder(str(tree), v2.RandomRotation(90))
    with pytest.raises(ValueError, match="item 0 of mine is not what it was at first: .* random transforms"):
        own(flipped)
    squares = [lambda i=i: np.random.randint(0, 256, (8, 8, 3), np.uint8) for i in range(9)]  # noqa: NPY002
    with pytest.raises(ValueError, match="item 0 of mine is not what it was at first"):
        own(Listed(squares))


def test_an_item_that_changes_in_mid_run_is_named() -> None:
    items: list[Any] = [
        np.random.default_rng(i).integers(0, 256, (20, 30 + i, 3), np.uint8) for i in range(12)
    ]
    data = own(Listed(items))
    picks = [Picks(np.arange(a, a + 3), np.zeros(3, np.int64)) for a in range(0, 12, 3)]
    batches = data.on("cpu", JpegOptions(prefetch=1)).batches(picks, RULE)
    next(batches)
    items[10] = items[10].copy()
    items[10][5, 5, 1] ^= 1
    with pytest.raises(ValueError, match="step 3: item 10 of mine is not what it was at first"):
        list(batches)
    items[10] = broken
    with pytest.raises(ValueError, match=r"step 0: item 10 of mine cannot be read \(OSError"):
        list(data.batches([Picks(np.array([10]), np.array([0]))], RULE))


def test_a_rule_for_arrays_is_refused(theirs: TorchSet) -> None:
    with pytest.raises(
        ValueError, match="PadCrop is for sets kept as arrays: use RandomResizedCrop for mine"
    ):
        theirs.batches(Order(N, 4), PadCrop(48, seed=0))


def test_the_first_pass_shows_a_bar_with_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    as_dataset(Listed([(GOOD, 0)] * 5), "mine")
    said = capsys.readouterr().err
    assert "mine: 100%" in said
    assert "5/5" in said
    assert "img/s" in said
