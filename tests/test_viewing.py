"""Finished views: cut, dressed and mixed, the same in any batch; and a cache of them is the teacher itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastanc.batch import Batch
from fastanc.cache.store import Store
from fastanc.parsing import parse
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.looks import Looks
from fastanc.pipelines.mixing import KINDS, Mixing
from fastanc.pipelines.order import Order, Picks
from fastanc.pipelines.pairing import Pairing
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import PadCrop, RandomResizedCrop, ViewRule
from fastanc.train import train
from fastanc.training.assemble_input import open_input
from fastanc.training.processes import make_accelerator
from support.images import class_folders
from support.tars import tar_of_tree
from support.tiny_run import LENETS, as_words

CPU, FILL, N, PX = torch.device("cpu"), (99, 20, 200), 23, 16
POLICIES = ("jitter", "rand-m9-n2-mstd0.5", "trivial", "three")


def arrays() -> ArraySet:
    images = np.random.default_rng(0).integers(0, 256, (N, PX, PX, 3), np.uint8)
    return ArraySet("noise", images, np.arange(N) % 4, list("abcd"), (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("viewed") / "set", a=6, b=6, c=6, d=5)


@pytest.fixture(params=["arrays", "tree", "tar"])
def data(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> DataSet:
    if request.param == "arrays":
        return arrays()
    name = tree if request.param == "tree" else tar_of_tree(tree, tmp_path / "set.tar")
    return open_dataset(str(name), "train", val_share=0.02)


def rule_of(data: DataSet) -> ViewRule:
    return PadCrop(PX, 1, 2, True) if isinstance(data, ArraySet) else RandomResizedCrop(PX, 1, (0.3, 1.0))


def views_of(data: DataSet, policy: str, kind: str | None, views_per_image: int = 1) -> Views:
    mixing = None
    if kind is not None:
        mixing = Mixing(kind, Pairing(data.num_images, 1, views_per_image), 0.7, 0.8, out_px=PX)
    return Views(rule_of(data), Looks(policy, 0.3, FILL, 0.1, True, 1), mixing)


def alone(data: DataSet, views: Views, index: int, view: int) -> torch.Tensor:
    """One picture [H, W, C], made with no other one in its batch."""
    picks = [Picks(np.array([index]), np.array([view]))]
    (batch,) = data.batches(picks, views.rule)
    assert views.looks is not None
    return views.looks.apply(batch.images.permute(0, 2, 3, 1), views.looks.draw(*picks[0], PX))[0]


def by_hand(data: DataSet, views: Views, index: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    """A finished picture [H, W, C] and its label [K], by the formulas of the papers."""
    own = alone(data, views, index, view).numpy().astype(np.int64)
    labels = np.eye(data.num_classes)[data.labels]
    if views.mixing is None:
        return own, labels[index]
    drawn = views.mixing.draw(np.array([index]), np.array([view]))
    partner, weight = int(drawn.partner[0]), int(drawn.weight[0])
    other = alone(data, views, partner, view).numpy().astype(np.int64)
    made = (weight * own + (128 - weight) * other + 64) // 128
    left, top, right, bottom = drawn.boxes[0]
    made[top:bottom, left:right] = other[top:bottom, left:right]
    share = weight / 128 - (right - left) * (bottom - top) / PX**2
    return made, share * labels[index] + (1 - share) * labels[partner]


def assert_made(data: DataSet, views: Views, batch: Batch) -> None:
    assert batch.images.shape == (len(batch.index), 3, PX, PX)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels is not None
    for image, label, index, view in zip(
        batch.images, batch.labels, batch.index.tolist(), batch.view.tolist()
    ):
        expected, shares = by_hand(data, views, index, view)
        assert (image.permute(1, 2, 0).numpy() == expected).all()
        if views.mixing is None:
            assert shares[int(label)] == 1
        else:
            assert np.allclose(label.numpy(), shares, atol=1e-6)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_batch_is_made_of_what_the_formulas_say(data: DataSet, kind: str | None) -> None:
    policy = POLICIES[[None, *KINDS].index(kind)]
    views = views_of(data, policy, kind)
    order = Order(data.num_images, 8, seed=2, views=3, pairing=views.mixing and views.mixing.pairing)
    seen = list(views.batches(data, order, CPU, start=1, stop=4, threads=2))
    assert [batch.step for batch in seen] == [1, 2, 3]
    for batch in seen:
        assert (batch.index == order(batch.step).index).all()
        assert_made(data, views, batch)
    some = [Picks(np.array([0, 5, 3]), np.array([1, 1, 1])), Picks(np.array([2]), np.array([2]))]
    asked = list(views.batches(data, some, CPU))
    assert [batch.index.tolist() for batch in asked] == [[0, 5, 3], [2]]
    for batch in asked:
        assert_made(data, views, batch)


def test_two_processes_have_the_parts_of_one(data: DataSet) -> None:
    views = views_of(data, "trivial", "both")
    assert views.mixing is not None
    pairing = views.mixing.pairing
    whole, one, two = (
        next(
            views.batches(
                data, Order(data.num_images, 12, rank, world, 2, 3, 1, pairing), CPU, start=1, stop=2
            )
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert torch.equal(torch.cat([one.images, two.images]), whole.images)
    assert torch.equal(torch.cat([one.labels, two.labels]), whole.labels)  # type: ignore[list-item]


def test_views_of_one_decode_are_mixed_with_those_of_one_other(data: DataSet) -> None:
    views = views_of(data, "trivial", "both", views_per_image=2)
    assert views.mixing is not None
    order = Order(data.num_images, 8, seed=2, views=4, views_per_image=2, pairing=views.mixing.pairing)
    for batch in views.batches(data, order, CPU, start=4, stop=6):
        assert len({*batch.view.tolist()}) == 2
        assert_made(data, views, batch)


def test_pairs_are_decoded_once(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order decodes what it asks for; a cache's build, which asks by pairs, decodes no more than the odd one."""
    views = views_of(data, "none", "both")
    asked: list[Picks] = []
    real = type(data).batches

    def batches(self: DataSet, picks: object, rule: ViewRule, **steps: int) -> object:
        asked.extend(picks if isinstance(picks, list) else [])
        return real(self, picks, rule, **steps)  # type: ignore[arg-type]

    monkeypatch.setattr(type(data), "batches", batches)
    images = views.arranged(0, np.arange(data.num_images))
    assert sorted(images.tolist()) == list(range(data.num_images))
    picks = [
        Picks(part, np.zeros_like(part)) for part in (images[k : k + 6] for k in range(0, len(images), 6))
    ]
    made = [i for batch in views.batches(data, picks, CPU) for i in batch.index.tolist()]
    assert made == images.tolist()
    assert sum(len(pick.index) for pick in asked) == data.num_images
    shuffled = [Picks(np.arange(data.num_images)[::4], np.zeros(len(images[::4]), np.int64))]
    list(views.batches(data, shuffled, CPU))
    assert len(asked[-1].index) > len(shuffled[0].index)


def test_closing_in_the_middle_ends_every_thread(data: DataSet) -> None:
    import threading

    before = threading.active_count()
    views = views_of(data, "trivial", "mixup")
    assert views.mixing is not None
    stream = views.batches(data, Order(data.num_images, 4, pairing=views.mixing.pairing), CPU)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before


def test_plain_views_are_the_sets_own_stream() -> None:
    data = arrays()
    (plain,), (ours,) = (
        list(make([Picks(np.arange(4), np.zeros(4, np.int64))]))
        for make in (
            lambda p: data.batches(p, PadCrop(PX, 1)),
            lambda p: Views(PadCrop(PX, 1)).batches(data, p, CPU),
        )
    )
    assert torch.equal(plain.images, ours.images)
    (smooth,) = Views(PadCrop(PX, 1), smoothing=0.2).batches(
        data, [Picks(np.arange(4), np.zeros(4, np.int64))], CPU
    )
    assert torch.equal(plain.images, smooth.images)
    expected = 0.8 * torch.eye(4) + 0.05
    assert torch.allclose(smooth.labels, expected)  # type: ignore[arg-type]


def test_the_identity_holds_all_that_fixes_pixels_and_only_that() -> None:
    data = arrays()
    sizes = data.sizes(np.arange(N))
    plain = Views(PadCrop(PX, 1))
    assert plain.describe() == PadCrop(PX, 1).describe()
    assert set(plain.checks(sizes)) == {"boxes_crc"}  # as caches of before have it
    assert Views(PadCrop(PX, 1), smoothing=0.1).describe() == plain.describe()
    some = [views_of(data, policy, kind) for policy in ("none", "trivial") for kind in (None, *KINDS)]
    facts = [str(views.describe()) + str(views.checks(sizes)) for views in some]
    assert len(set(facts)) == len(facts)


# What a run makes of them.

RUN = {
    **LENETS,
    "data.batch": "64",
    "data.image_px": "32",
    "data.resize_px": "32",
    "data.views": "2",
    "schedule.epochs": "3",
    "data.share": "0.25",
    "teacher.rows": "fp32",
    "method.type": "kd",
    "method.alpha": "0.5",
}
WAYS = {
    "jitter, grey": ["--data.looks", "jitter", "--data.grey", "0.3", "--data.vflip", "true"],
    "rand, erase, both": ["--data.looks", "rand-m9-n2-mstd0.5", "--data.erase", "0.3", "--data.mix", "both"],
    "trivial, padded": ["--data.looks", "trivial", "--data.crop", "padded", "--data.mix", "mixup"],
    "smooth": ["--data.smoothing", "0.1", "--data.erase", "0.5", "--data.erase_fill", "zero"],
    "three, cutmix, parts": ["--data.looks", "three", "--data.mix", "cutmix", "--run.accumulate", "2"],
    "mixup, two views": ["--data.mix", "mixup", "--data.views_per_image", "2", "--data.mix_share", "0.5"],
}  # fmt: skip


def trained(folder: Path, name: str, *words: str) -> dict[str, torch.Tensor]:
    config = parse([*as_words(RUN), "--run.out", str(folder), "--run.name", name, *words])
    return load_file(train(config) / "student.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[key], other[key]) for key in one)


QUICK = ("rand, erase, both", "trivial, padded", "mixup, two views")


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_the_cached_student_is_the_online_student(tmp_path: Path, way: str) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    cache = ["--teacher.cache_dir", str(tmp_path / "cache")]
    online = trained(tmp_path, "online", *WAYS[way])
    assert_same(online, trained(tmp_path, "filling", *WAYS[way], *cache, "--teacher.cache", "fill"))
    assert_same(online, trained(tmp_path, "riding", *WAYS[way], *cache, "--teacher.cache", "read"))
    plain = trained(tmp_path, "plain")
    assert any(not torch.equal(online[key], plain[key]) for key in online)


def _made(log: Path, step: int) -> bool:
    return log.exists() and f'"step": {step},' in log.read_text()


def test_killed_and_gone_on_it_ends_equal(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    words = [*WAYS["rand, erase, both"], "--teacher.cache", "fill", "--run.checkpoint_every", "3"]
    words += ["--run.log_every", "1", "--schedule.epochs", "6"]
    whole = trained(tmp_path, "whole", *words, "--teacher.cache_dir", str(tmp_path / "a"))
    words += ["--teacher.cache_dir", str(tmp_path / "b")]
    command = [
        sys.executable,
        "-m",
        "fastanc.train",
        *as_words(RUN),
        "--run.out",
        str(tmp_path),
        "--run.name",
        "k",
    ]
    killed = subprocess.Popen([*command, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "k" / "metrics.jsonl", time.time() + 1800
    while (
        time.time() < deadline
        and killed.poll() is None
        and not (log.exists() and '"step": 9,' in log.read_text())
    ):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert_same(whole, trained(tmp_path, "k", *words, "--run.resume", "latest"))


def test_a_built_cache_is_read_and_verified_and_another_policys_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    words = [*as_words(RUN), "--teacher.cache_dir", str(tmp_path / "cache"), *WAYS["rand, erase, both"]]
    from fastanc.cli import main

    assert not main(["cache", "build", *words])
    assert "mixed pictures take no more room" in capsys.readouterr().out
    (folder,) = (tmp_path / "cache").iterdir()
    store = Store.at(folder)
    assert all(store.complete(view) for view in (0, 1))
    assert store.identity["rule"]["mixing"]["mix"] == "both"
    assert not main(["cache", "verify", "--teacher", "40", *words])
    assert "features: largest difference" in capsys.readouterr().out
    online = trained(tmp_path, "online", *WAYS["rand, erase, both"])
    read = ["--teacher.cache", "read", "--teacher.cache_dir", str(tmp_path / "cache")]
    assert_same(online, trained(tmp_path, "riding", *WAYS["rand, erase, both"], *read))
    with pytest.raises(FileNotFoundError, match="rule.mixing.alpha"):
        trained(tmp_path, "other", *WAYS["rand, erase, both"], "--data.mix_alpha", "0.3", *read)
    with pytest.raises(FileNotFoundError, match="rule.looks"):
        trained(tmp_path, "plain", *read)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--method.type", "can", "--data.mix", "mixup"],
            "one true class of every picture, which data.mix mixup",
        ),
        (["--method.type", "can", "--data.smoothing", "0.1"], "which data.smoothing 0.1 takes away"),
        (["--data.batch", "63", "--data.mix", "mixup"], "use a multiple of 2"),
        (["--data.mix_alpha", "0.3"], "data.mix_alpha does nothing with data.mix none"),
        (["--data.erase_fill", "zero"], "data.erase_fill does nothing with"),
        (["--data.max_ratio", "2", "--data.crop", "padded"], "data.max_ratio does nothing with padded crops"),
        (
            ["--method.type", "l2", "--data.smoothing", "0.1"],
            "data.smoothing does nothing with method.type l2",
        ),
        (["--data.erase_fill", "zero", "--data.looks", "jitter"], "with looks that leave no place empty"),
        (
            ["--method.type", "datafree", "--data.looks", "trivial"],
            "with a method that trains on latent vectors",
        ),
        (["--data.looks", "trivia"], "data.looks 'trivia' is not known: choose one of none, jitter"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path: Path, words: list[str], says: str) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    fields = {key: value for key, value in RUN.items() if not key.startswith("method")}
    with pytest.raises(ValueError, match=says):
        train(parse([*as_words(fields), "--run.out", str(tmp_path), "--run.name", "no", *words]))
    assert not (tmp_path / "no").exists()


def test_a_plugins_look_is_trained_on_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    plugin = tmp_path / "my_looks.py"
    plugin.write_text(
        "import torch\nimport fastanc\n\n@fastanc.register_look('thirds', version=2)\n"
        "def thirds(images, draws):\n"
        "    factor = torch.from_numpy(draws.uniform(0) * 256).int().to(images.device)\n"
        "    return (images.int() * factor[:, None, None, None] >> 8).to(torch.uint8)\n"
    )
    words = [
        "--run.plugin",
        str(plugin),
        "--data.looks",
        "thirds",
        "--teacher.cache_dir",
        str(tmp_path / "cache"),
    ]
    online = trained(tmp_path, "online", *words)
    assert_same(online, trained(tmp_path, "filling", *words, "--teacher.cache", "fill"))
    (folder,) = (tmp_path / "cache").glob("*digits-32*")
    assert Store.at(folder).identity["rule"]["looks"]["version"] == 2


def test_a_look_that_reads_its_neighbours_is_refused_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    plugin = tmp_path / "rolled_looks.py"
    plugin.write_text(
        "import fastanc\n\n@fastanc.register_look('rolled')\n"
        "def rolled(images, draws):\n    return images.roll(1, 0)\n"
    )
    config = parse([*as_words(RUN), "--run.plugin", str(plugin), "--data.looks", "rolled"])
    with pytest.raises(ValueError, match="'rolled' makes another picture of an image alone than in a batch"):
        open_input(config, make_accelerator(batch=64))


def test_labels_of_mixed_pictures_reach_the_method() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    config = parse([*as_words(RUN), "--data.mix", "cutmix", "--data.smoothing", "0.1"])
    source = open_input(config, make_accelerator(batch=64))
    batch = next(source.batches(0, 1))
    assert batch.labels is not None
    assert batch.labels.shape == (64, 10)
    assert torch.allclose(batch.labels.sum(1), torch.ones(64), atol=1e-6)
    assert (batch.labels > 0.01 - 1e-6).all()
