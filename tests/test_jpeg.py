from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastanc.pipelines.index.build import Index, build_index
from fastanc.pipelines.jpeg.bytes import Reader
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order, Picking, Picks, evaluation_picks
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule
from support.decoders import CPU_PLANS, needs_dali
from support.images import encoded, odd_picture, put
from support.tars import tar_of_tars, tar_of_tree

N = 36
RULE = RandomResizedCrop(48, seed=11)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {}
    for i in range(N):
        exif = Image.Exif()
        exif[274] = 6 if i == 8 else 1  # one is meant to be rotated by its viewer
        options = {"quality": 90, "subsampling": (0, 1, 2)[i % 3], "exif": exif}
        files[f"class{i % 3}/{i:03d}.JPEG"] = encoded(odd_picture(i), **options)
    return put(tmp_path_factory.mktemp("sets") / "tree", files)


def opened(source: Path, plan: str) -> JpegSet:
    index = build_index(source, workers=1, progress=False)
    return JpegSet("toy", index, MEAN, STD).on("cpu", JpegOptions(decode=plan))


@pytest.fixture(params=CPU_PLANS)
def plan(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(tree: Path, plan: str) -> JpegSet:
    return opened(tree, plan)


def shuffled(batch: int) -> Order:
    return Order(N, batch, seed=2)


def by_image(
    data: JpegSet, picks: Picking, stop: int | None = None, **options: object
) -> dict[tuple[int, int], np.ndarray]:
    """The pixels of every (image, view) of these picks."""
    found = {}
    bound = data.on("cpu", JpegOptions(decode=data.options.decode, **options))
    for batch in bound.batches(picks, RULE, stop=stop):
        for k, key in enumerate(zip(batch.index.tolist(), batch.view.tolist())):
            found[key] = batch.images[k].numpy().copy()
    return found


def in_batches(images: np.ndarray, size: int, view: int = 4) -> list[Picks]:
    parts = [images[a : a + size] for a in range(0, len(images), size)]
    return [Picks(part, np.full_like(part, view)) for part in parts]


def plain(index: Index, source: Path, rule: ViewRule, i: int, view: int) -> tuple[Image.Image, bool]:
    """The box of a view, cut by PIL, and whether it is flipped."""
    image = Image.open(source / index.name(i)).convert("RGB")
    (box,), (flip,) = rule.boxes(np.array([i]), np.array([view]), np.array([image.size]))
    x, y, w, h = box.tolist()
    return image.crop((x, y, x + w, y + h)), bool(flip)


def test_batches_are_what_pil_cuts_and_torch_resizes(data: JpegSet, tree: Path) -> None:
    order = shuffled(8)
    for batch in data.batches(order, RULE, start=2, stop=6):
        assert batch.images.shape == (8, 3, 48, 48)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.index == order(batch.step).index).all()
        assert (batch.view == order(batch.step).view).all()
        assert (batch.labels.numpy() == data.labels[batch.index]).all()
        for k, (i, view) in enumerate(zip(batch.index.tolist(), batch.view.tolist())):
            crop, flip = plain(data.index, tree, RULE, i, view)
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
            expected = torch.nn.functional.interpolate(pixels, (48, 48), mode="bilinear", antialias=True)[0]
            assert torch.equal(batch.images[k], expected.flip(2) if flip else expected)
            pil = np.asarray(crop.resize((48, 48), Image.Resampling.BILINEAR)).astype(int)
            pil = pil[:, ::-1] if flip else pil
            assert np.abs(batch.images[k].permute(1, 2, 0).numpy() - pil).max() <= 1
    assert batch.step == 5


def test_pixels_depend_on_image_and_view_alone(data: JpegSet) -> None:
    images = np.arange(N)
    reference = by_image(data, in_batches(images, 36), threads=1)
    mixed_up = np.random.default_rng(0).permutation(N)
    others = [
        by_image(data, in_batches(images, 7), threads=1),
        by_image(data, in_batches(mixed_up, 64), threads=2, prefetch=3),
        by_image(data, in_batches(mixed_up, 1), threads=2, prefetch=1),
    ]
    for other in others:
        assert other.keys() == reference.keys()
        assert all((other[key] == reference[key]).all() for key in reference)


def test_a_tar_and_a_tar_of_tars_give_the_tree_s_bits(data: JpegSet, tree: Path, tmp_path: Path) -> None:
    flat = tar_of_tree(tree, tmp_path / "flat.tar", tarfile.GNU_FORMAT)
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(tree.glob("*/*"))}
    nested = tar_of_tars(tmp_path / "nested.tar", files)
    reference = by_image(data, in_batches(np.arange(N), 16))
    for source in (flat, nested):
        other = opened(source, data.options.decode)
        assert (other.index.sizes == data.index.sizes).all()
        found = by_image(other, in_batches(np.arange(N), 9))
        assert all((found[key] == reference[key]).all() for key in reference)


def test_a_run_can_start_at_any_step(data: JpegSet) -> None:
    whole = [b.images.clone() for b in data.batches(shuffled(8), RULE, stop=12)]
    assert len(whole) == 12
    late = data.batches(shuffled(8), RULE, start=7, stop=12)
    for expected, batch in zip(whole[7:], late, strict=True):
        assert torch.equal(batch.images, expected)
    far = next(data.batches(shuffled(8), RULE, start=10**6))
    assert far.step == 10**6
    assert (far.index == shuffled(8)(10**6).index).all()


def test_batches_stay_as_they_are_while_held(data: JpegSet) -> None:
    held = [(b.images, b.images.clone()) for b in data.batches(shuffled(8), RULE, stop=9)]
    assert all(torch.equal(images, copy) for images, copy in held)


def test_views_from_one_decode_are_the_views_of_many(data: JpegSet) -> None:
    order = Order(N, 12, seed=2, views_per_image=3)
    together = by_image(data, order, stop=4)
    assert len(together) == 48
    apart = by_image(data, [order(step) for step in range(4)])  # a list has single views
    assert all((together[key] == apart[key]).all() for key in apart)

    class Mixed(Order):
        def __call__(self, step: int) -> Picks:
            return Picks(*(part[::-1].copy() if step == 2 else part for part in shuffled(12)(step)))

    with pytest.raises(
        ValueError, match="step 0: an order with views_per_image 3 must give each image 3 times"
    ):
        next(data.batches(Mixed(N, 12, views_per_image=3), RULE))


def test_views_of_one_image_are_decoded_once(data: JpegSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, i: read.append(len(i)) or real(self, i))
    list(data.batches(Order(N, 12, seed=2, views_per_image=3), RULE, stop=2))
    assert read == [4, 4]
    order = Order(N, 12, seed=2, views_per_image=3)
    list(data.batches([order(0)], RULE))
    assert read[2:] == [12]


def test_evaluation_batches_count_every_image_once(data: JpegSet) -> None:
    seen = []
    for rank in range(3):
        picks = evaluation_picks(N, 15, rank, 3)
        for batch in data.batches(picks, CentreCrop(32, 36)):
            assert batch.images.shape == (len(batch.index), 3, 32, 32)
            seen += batch.index.tolist()
    assert sorted(seen) == list(range(N))
    assert list(data.batches([], CentreCrop(32, 36))) == []


@pytest.mark.parametrize(("rule", "views"), [(RULE, 1), (RULE, 2), (CentreCrop(48, 56), 1)])
def test_the_gpu_s_graph_draws_the_same_views(data: JpegSet, rule: ViewRule, views: int) -> None:
    decoding = pytest.importorskip("fastanc.pipelines.jpeg.decoder", reason="DALI is not installed")
    # run on the CPU: cutting, resizing, flipping and the order of views are the same operators there
    options, device = JpegOptions(decode="cpu", threads=1), torch.device("cpu")  # expected: by either plan
    order = Order(N, 8, seed=2, views_per_image=views)
    (expected,) = data.batches(order, rule, stop=1)
    run = decoding.Run(
        data.index, order, rule, range(1), largest=8, views=views, device=device, options=options
    )
    run._device = torch.device("cuda")
    graph = decoding._graph(
        run._source, options, rule, views=views, batch_size=8, num_threads=1, device_id=None
    )
    outputs = [torch.from_dlpack(view.as_tensor()) for view in graph.run()]
    pixels = torch.stack(outputs, 1).flatten(0, 1).permute(0, 3, 1, 2)
    difference = (pixels.int() - expected.images.int()).abs()
    assert difference.float().mean() < 0.5
    assert difference.float().mean((1, 2, 3)).max() < 2


@pytest.mark.gpu
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("decode", [*CPU_PLANS, pytest.param("mixed", marks=needs_dali)])
def test_cuda_batches_show_the_same_views(data: JpegSet, decode: str, views: int) -> None:
    order = Order(N, 8, seed=2, views_per_image=views)
    on_cpu = data.batches(order, RULE, stop=6)
    held = list(data.on("cuda", JpegOptions(decode=decode)).batches(order, RULE, stop=6))
    for expected, batch in zip(on_cpu, held, strict=True):
        assert batch.images.is_cuda
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        difference = (batch.images.cpu().int() - expected.images.int()).abs().float()
        assert difference.mean((1, 2, 3)).max() < (6 if decode != "torchvision" else 1e-9)


def copied(tree: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(tree), str(tmp_path / "copy")], check=True)
    return tmp_path / "copy"


def test_a_file_cut_after_indexing_is_refused_at_start(tree: Path, tmp_path: Path, plan: str) -> None:
    root = copied(tree, tmp_path)
    data = opened(root, plan)
    os.truncate(root / "class1" / "010.JPEG", 300)
    with pytest.raises(ValueError, match=r"class1/010\.JPEG changed from \d+ to 300 bytes .*--refresh"):
        data.batches(shuffled(8), RULE)
    (root / "class1" / "010.JPEG").unlink()
    with pytest.raises(ValueError, match=r"class1/010\.JPEG went missing"):
        data.batches(shuffled(8), RULE)


def test_a_file_cut_during_the_run_is_named(tree: Path, tmp_path: Path, plan: str) -> None:
    root = copied(tree, tmp_path)
    data = opened(root, plan)
    batches = data.batches(in_batches(np.arange(N), 1), RULE)
    first = next(batches)
    victim = data.index.name(N - 1)
    os.truncate(root / victim, 300)
    with pytest.raises(RuntimeError, match=rf"step {N - 1}: {victim} changed since it was indexed"):
        list(batches)
    assert first.index.tolist() == [0]


def test_a_tar_cut_during_the_run_is_named(tree: Path, tmp_path: Path, plan: str) -> None:
    source = tar_of_tree(tree, tmp_path / "flat.tar")
    data = opened(source, plan)
    batches = data.batches(in_batches(np.arange(N), 1), RULE)
    next(batches)
    last = max(range(N), key=lambda i: data.index.places([i])[0][1])
    os.truncate(source, data.index.places([last])[0][1] + 100)
    with pytest.raises(RuntimeError, match=rf"step {last}: {data.index.name(last)} changed"):
        list(batches)


@pytest.mark.parametrize("views", [1, 3])
def test_a_file_that_does_not_decode_is_named(tree: Path, tmp_path: Path, plan: str, views: int) -> None:
    root = copied(tree, tmp_path)
    data = opened(root, plan)
    order = Order(N, 4 * views, seed=2, views_per_image=views)
    victim = int(order(5).index[2 * views])
    path = root / data.index.name(victim)
    encoded = path.read_bytes()
    # Of zeros in mid scan DALI makes grey, in some pictures.
    path.write_bytes(encoded[: len(encoded) // 2] + b"\x55" * (len(encoded) - len(encoded) // 2))
    rule = RandomResizedCrop(32, seed=0, scale=(0.99, 1.0))
    batches = data.batches(order, rule)
    for _ in range(5):
        next(batches)
    with pytest.raises(RuntimeError, match=rf"step 5: {data.index.name(victim)} does not decode: .*--full"):
        next(batches)


def test_closing_ends_the_threads(data: JpegSet) -> None:
    # threads of an earlier test may still be ending: only those begun here count
    before = set(threading.enumerate())
    batches = data.batches(shuffled(8), RULE)
    next(batches)
    begun = set(threading.enumerate()) - before
    assert begun
    batches.close()
    assert not [thread.name for thread in begun if thread.is_alive()]


@pytest.mark.slow
def test_a_program_may_end_in_mid_run(tree: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fastanc.pipelines.index.build import build_index\n"
        "from fastanc.pipelines.jpeg.jpeg_set import JpegSet\n"
        "from fastanc.pipelines.order import Order\n"
        "from fastanc.pipelines.views import RandomResizedCrop\n"
        "index = build_index(Path(sys.argv[1]), workers=1, progress=False)\n"
        "batches = JpegSet('toy', index, (0,), (1,)).batches(Order(36, 8), RandomResizedCrop(48, 0))\n"
        "next(batches); print('reached')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree)], capture_output=True, text=True, timeout=1800
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["reached"]), done.stderr


@needs_dali
def test_the_description_fixes_pixels(tree: Path, tmp_path: Path) -> None:
    data = opened(tree, "cpu")
    described = data.describe()
    assert described["decoder"] == "cpu"
    assert described["resize"] == "torch uint8 bilinear"
    assert described == data.on("cpu", JpegOptions(threads=3, prefetch=4)).describe()
    others = [data.on("cuda", JpegOptions(decode=plan)).describe() for plan in ("cpu", "mixed", "mixed_roi")]
    others.append(data.on("cuda", JpegOptions(decode="mixed", hw_decoder_load=0.0)).describe())
    others += [data.on(device, JpegOptions(decode="torchvision")).describe() for device in ("cpu", "cuda")]
    assert others[-1] == others[-2]
    assert len({str(other) for other in [described, *others]}) == 6
    root = copied(tree, tmp_path)
    (root / "class0" / "000.JPEG").unlink()
    assert opened(root, "cpu").describe()["fingerprint"] != described["fingerprint"]


@needs_dali
def test_wrong_options_are_refused_in_words(tree: Path) -> None:
    data = opened(tree, "cpu")
    with pytest.raises(ValueError, match="PadCrop is for sets kept as arrays"):
        data.batches(shuffled(8), PadCrop(48, seed=0))
    with pytest.raises(ValueError, match="decode 'mixed' needs a CUDA device: use auto, cpu or torchvision"):
        data.on("cpu", JpegOptions(decode="mixed"))
    with pytest.raises(ValueError, match="decode 'gpu' is unknown"):
        JpegOptions(decode="gpu")
