"""Every registered method, and one from outside the package, through the public entry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastanc.cache.store import Store
from fastanc.jobs.export import export
from fastanc.methods.base import OF_TEACHER, Method
from fastanc.models import zoo
from fastanc.parsing import dump, method_names, parse
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.latents import LatentSet, latents
from fastanc.pipelines.order import Order, evaluation_picks
from fastanc.pipelines.views import CentreCrop
from fastanc.teacher.online import Online
from fastanc.train import train
from fastanc.training.assemble import open_run
from fastanc.training.run import Run
from fastanc.training.step import play
from support.images import class_folders
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

TINY = {
    **LENETS,
    "run.max_steps": "2",
    "run.log_every": "1",
    "data.batch": "16",
    "optimizer.lr": "0.01",
}
OWN = {
    "datafree": {
        "data.batch": "4",
        "data.steps_per_epoch": "2",
        "method.student_steps": "1",
        "method.latent_dim": "16",
    },
    "fsp": {"teacher.name": "resnet8", "student.name": "resnet8"},
    "ksanc_teacher": {"student.name": "lenet5"},
}


def run(folder: Path, method: str, **options: str) -> Path:
    """Train a few steps of a method on the digits through the public entry."""
    fields = {**TINY, "run.out": str(folder), "run.name": method, "method.type": method, **options}
    fields = {"teacher.cache_dir": str(folder / "cache"), **fields}
    return train(parse(as_words(fields)))


def lines(folder: Path, kind: str) -> list[dict[str, float]]:
    return [x for x in map(json.loads, (folder / "metrics.jsonl").open()) if x["kind"] == kind]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs of a teacher and of its attention estimators."""
    folder = tmp_path_factory.mktemp("ksanc")
    teacher = run(folder, "supervised", **{"run.name": "teacher", "student.name": "lenet5"})
    weights = {"student.name": "lenet5", "student.weights": str(teacher / "student.safetensors")}
    run(folder, "ksanc_teacher", **weights)
    return folder


def of_teacher(folder: Path) -> dict[str, str]:
    return {
        "teacher.weights": str(folder / "teacher" / "student.safetensors"),
        "teacher.estimators": str(folder / "ksanc_teacher" / "estimators.safetensors"),
    }


@pytest.mark.parametrize("method", sorted({*method_names()} - {"mine"}))
def test_every_method_trains_through_the_public_entry(method: str, tmp_path: Path, trained: Path) -> None:
    options = of_teacher(trained) if method == "ksanc" else OWN.get(method, {})
    folder = run(tmp_path, method, **options)
    logged = lines(folder, "train")
    assert [line["step"] for line in logged] == [0, 1]
    assert any("/" in key for key in logged[0])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["method"] == method
    assert 0 <= summary["val"]["error_pct"] <= 100
    student = zoo.load_weights(folder / "student.safetensors").eval()
    assert student(torch.zeros(1, 3, 32, 32)).logits.isfinite().all()


FROM_ROWS = {"logits", "features", "head", "labels", "soft_labels"}


def from_rows() -> list[str]:
    """Methods that a cache teaches without any pass of the teacher."""
    found = {name: Method.get_choice_class(name) for name in method_names() if name not in ("mine", "sum")}
    return [
        *(
            name
            for name, kind in found.items()
            if len(kind().needs & OF_TEACHER) > 0 and kind().needs <= FROM_ROWS
        ),
        "sum",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", from_rows())
def test_every_methods_cached_student_is_the_online_student(method: str, tmp_path: Path) -> None:
    """Twenty steps over epochs, rows in fp32, to the last bit."""
    fields = {"run.max_steps": "20", "data.batch": "96", "teacher.rows": "fp32"} | OWN.get(method, {})
    made = {}
    for way in ("off", "fill", "read"):
        folder = run(
            tmp_path / way,
            method,
            **fields,
            **{"teacher.cache": way, "teacher.cache_dir": str(tmp_path / "rows")},
        )
        made[way] = load_file(folder / "student.safetensors")
    for way in ("fill", "read"):
        assert all(torch.equal(made["off"][key], value) for key, value in made[way].items()), way


def test_a_share_of_the_data_is_all_that_is_trained_on_and_cached(tmp_path: Path) -> None:
    options = {"data.share": "0.1", "run.max_steps": "0", "schedule.epochs": "1", "teacher.cache": "fill"}
    summary = json.loads((run(tmp_path, "l2", **options) / "summary.json").read_text())
    images = open_dataset("digits", "train", share=0.1).num_images
    assert summary["trained_on"] == "10 % of digits"
    assert summary["steps"] == images // 16
    (cache,) = (tmp_path / "cache").glob("lenet5-digits-32px-*")
    store = Store.at(cache)
    assert (store.num_images, store.complete(0)) == (images, True)


def test_later_students_are_compared_with_kept_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = run(tmp_path, "supervised", **{"student.name": "lenet5"}) / "student.safetensors"
    options = {"run.max_steps": "0", "schedule.epochs": "1", "teacher.weights": str(teacher)}
    options |= {"teacher.cache": "fill", "teacher.rows": "fp32"}
    first = json.loads((run(tmp_path, "l2", **options) / "summary.json").read_text())

    def refused(*_: object) -> None:
        raise AssertionError("the teacher was run")

    monkeypatch.setattr(Online, "__call__", refused)
    named = {"run.name": "again", "teacher.cache": "read"}
    again = run(tmp_path, "l2", **{**options, **named})
    summary = json.loads((again / "summary.json").read_text())
    assert summary["val"] == first["val"]
    networks = [zoo.load_weights(path).eval() for path in (teacher, again / "student.safetensors")]
    val = open_dataset("digits", "val")
    picks = evaluation_picks(val.num_images, 60)
    batches = val.batches(picks, CentreCrop(32, 32))
    with torch.no_grad():
        guesses = [[network(batch.images).logits.argmax(1) for network in networks] for batch in batches]
    same = sum(int((one == other).sum()) for one, other in guesses)
    assert summary["val"]["agreement_pct"] == pytest.approx(100 * same / val.num_images)


def test_a_wish_that_would_mix_two_runs_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastanc.training import assemble

    folder = run(tmp_path, "supervised")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def refused(*_: object) -> None:
        raise AssertionError("a set was opened")

    monkeypatch.setattr(assemble, "open_input", refused)
    for options, said in (
        ({}, "holds checkpoints of an earlier run"),
        ({"run.resume": "latest", "data.batch": "48"}, "was written with data.batch"),
        (
            {"run.resume": "never", "run.accumulate": "7", "run.name": "new"},
            "run.accumulate 7 does not divide",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            run(tmp_path, "supervised", **options)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_data_free_run_sees_no_training_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastanc.training import assemble_input

    asked = []
    real = assemble_input.open_dataset

    def watched(name: str, split: str, *others: object, **options: object) -> object:
        asked.append(split)
        return real(name, split, *others, **options)

    monkeypatch.setattr(assemble_input, "open_dataset", watched)
    folder = run(tmp_path, "datafree", **OWN["datafree"], **{"teacher.cache": "fill"})
    assert asked == ["val"]
    assert not (tmp_path / "cache").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trained_on"] == "latent vectors"
    sheet = np.asarray(Image.open(folder / "samples.png"))
    assert sheet.shape == (4 * 33 - 1, 16 * 33 - 1, 3)
    assert sheet[:32, :32].std() > 0
    assert (sheet[32] == 255).all()
    assert {key for key in lines(folder, "train")[0] if "/" in key} >= {
        "student/data",
        "discriminator/discriminate",
        "generator/one_hot",
    }


def test_latents_are_a_pure_function_of_seed_step_and_process() -> None:
    base = latents(500, 20, seed=3, step=5, rank=1)
    assert base.dtype == np.float32
    assert np.array_equal(base, latents(500, 20, seed=3, step=5, rank=1))
    assert np.array_equal(base[:10], latents(10, 20, seed=3, step=5, rank=1))
    others = [dict(seed=4, step=5, rank=1), dict(seed=3, step=6, rank=1), dict(seed=3, step=5, rank=0)]
    for other in others:
        assert abs(np.corrcoef(base.ravel(), latents(500, 20, **other).ravel())[0, 1]) < 0.05
    assert abs(base.mean()) < 0.04
    assert abs(base.std() - 1) < 0.04


@pytest.mark.parametrize("world", [1, 2])
def test_a_set_of_latent_vectors_draws_a_steps_share_of_every_process(world: int) -> None:
    like = open_dataset("digits", "val")
    for rank in range(world):
        data = LatentSet(20, 5 * 8, like=like, seed=3, rank=rank)
        order = Order(data.num_images, 8, rank, world, seed=3)
        seen = list(data.on("cpu").batches(order, CentreCrop(32, 32), start=4, stop=9))
        assert [batch.step for batch in seen] == [4, 5, 6, 7, 8]
        for batch in seen:
            drawn = latents(8 // world, 20, seed=3, step=batch.step, rank=rank)
            assert np.array_equal(batch.images.numpy(), drawn)
            assert not batch.index.any()
            assert not batch.view.any()
            assert batch.labels is None
    assert isinstance(data, DataSet)
    assert (data.num_images, data.classes, data.channels) == (40, like.classes, 3)
    assert (data.labels, data.mean, data.std) == (None, like.mean, like.std)
    assert [len(b.index) for b in data.batches(evaluation_picks(10, 4), CentreCrop(32, 32))] == [4, 4, 2]
    assert data.subset(np.arange(3)).num_images == 3


def test_latents_are_the_same_for_ever() -> None:
    drawn = latents(2, 3, seed=3, step=5, rank=1).astype(np.float64)
    assert drawn.tolist() == [
        [0.44862183928489685, 0.05132953077554703, -0.5966798067092896],
        [0.9126575589179993, -0.010312030091881752, 1.5819361209869385],
    ]


def test_data_free_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options = {**OWN["datafree"], "data.steps_per_epoch": "2", "run.checkpoint_every": "1"}
    whole = run(tmp_path / "a", "datafree", **options, **{"run.max_steps": "4"})
    run(tmp_path / "b", "datafree", **options)
    again = run(tmp_path / "b", "datafree", **options, **{"run.max_steps": "4", "run.resume": "latest"})
    one, two = (load_file(folder / "student.safetensors") for folder in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_data_free_recipe_keeps_its_discriminator_with_a_trained_teacher(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained teacher's logits are large: at the student's learning rate the discriminator is nan in 15 steps."""
    fields = {
        "recipe": "cifar10_datafree",
        "teacher.name": "resnet56_v1",
        "teacher.recipe": "null",
        "teacher.weights": str(next((data_root / "weights").glob("resnet56-*.th"))),
        "student.name": "resnet20_v1",
        "method.generator_width": "16",
        "data.root": str(data_root),
        "data.batch": "16",
        "run.out": str(tmp_path),
        "run.name": "free",
        "run.max_steps": "30",
        "run.log_every": "1",
    }
    monkeypatch.setattr(Run, "finish", lambda run: run.folder)  # the validation set takes minutes
    logged = lines(train(parse(as_words(fields))), "train")
    assert len(logged) == 30
    d_teacher, d_student = (
        np.mean([line[key] for line in logged[-10:]]) for key in ("d_teacher", "d_student")
    )
    assert 0.1 < d_student <= d_teacher < 0.95  # nobody has won: matched sides are at 2/3


def test_ksanc_teacher_keeps_the_network_and_is_judged_by_its_attention(trained: Path) -> None:
    before = load_file(trained / "teacher" / "student.safetensors")
    after = load_file(trained / "ksanc_teacher" / "student.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    kept = load_file(trained / "ksanc_teacher" / "estimators.safetensors")
    assert {key.split(".")[0] for key in kept} == {"estimators", "head"}
    summaries = [
        json.loads((trained / name / "summary.json").read_text()) for name in ("teacher", "ksanc_teacher")
    ]
    losses = [summary["val"]["loss"] for summary in summaries]
    assert losses[0] != losses[1]  # the frozen network's own loss would be the same


def test_ksanc_student_rides_on_the_cache(tmp_path: Path, trained: Path) -> None:
    options = {**of_teacher(trained), "data.batch": "479", "teacher.rows": "fp32", "run.max_steps": "3"}
    runs = {}
    for cache in ("fill", "read"):
        named = {"run.name": cache, "teacher.cache": cache, "teacher.cache_dir": str(tmp_path / "cache")}
        runs[cache] = run(tmp_path, "ksanc", **options, **named)
    one, two = (load_file(folder / "student.safetensors") for folder in runs.values())
    assert all(torch.equal(one[key], two[key]) for key in one)
    facts = json.loads(next((tmp_path / "cache").glob("lenet5-digits-32px-*/identity.json")).read_text())
    assert [field["name"] for field in facts["fields"]] == ["features", "descriptors"]
    assert facts["fields"][1]["width"] == 6 + 16 + 120
    assert len(facts["teacher"]["estimators"]) == 64
    other = run(
        tmp_path,
        "ksanc_teacher",
        **{"student.weights": options["teacher.weights"], "student.name": "lenet5", "run.seed": "1"},
    )
    options["teacher.estimators"] = str(other / "estimators.safetensors")
    with pytest.raises(FileNotFoundError, match=r"teacher\.estimators"):
        run(tmp_path, "ksanc", **options, **named, **{"run.resume": "anew"})


def test_ksanc_without_its_estimators_says_what_to_do(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match="ksanc_teacher"):
        run(tmp_path, "ksanc")
    with pytest.raises(ValueError, match="trained on other weights"):
        run(tmp_path, "ksanc", **{**of_teacher(trained), "teacher.weights": "random"})
    with pytest.raises(ValueError, match=r"method\.squeeze"):
        run(tmp_path, "ksanc", **of_teacher(trained), **{"method.squeeze.pooling": "mean"})


def test_wrapped_players_export_their_student(tmp_path: Path, trained: Path) -> None:
    from fastanc.models.ksanc_teacher import load_estimators
    from fastanc.models.regressor import Regressed

    teacher = zoo.load_weights(trained / "teacher" / "student.safetensors", stages="auto").eval()
    player = load_estimators(teacher, trained / "ksanc_teacher" / "estimators.safetensors")
    for wrapped in (player, player.squeezed, Regressed(teacher, 0, torch.nn.Conv2d(6, 6, 1))):
        written = export(wrapped, tmp_path, ["safetensors"])["safetensors"]
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(zoo.load_weights(written).eval()(images).logits, teacher(images).logits)


MINE = '''
"""Sign distillation, in one file."""
from dataclasses import dataclass
import torch
from fastanc.methods.base import Method, Played, sides

@Method.register_subclass("mine")
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    weight: float = 2.0
    """Factor of the only term."""
    needs = frozenset({"logits"})

    def student_play(self, nets, batch, out):
        teacher, student = sides(batch, out)
        return Played({"sign": self.weight * (student.logits - teacher.logits.sign()).abs().mean()})
'''


def test_a_method_in_a_users_file_is_trained_by_name(tmp_path: Path) -> None:
    file = tmp_path / "my_method.py"
    file.write_text(MINE)
    with pytest.raises(ValueError, match="'mine' is unknown"):
        parse(["--method.type", "mine"])
    folder = run(tmp_path, "mine", **{"plugin": str(file), "method.weight": "3"})
    logged = lines(folder, "train")
    assert logged[0]["student/sign"] > 0
    again = parse(["--config_path", str(folder / "config.yaml")])
    assert again.method.weight == 3  # type: ignore[attr-defined]
    assert "mine" in dump(again)
    with pytest.raises(ValueError, match=r"method\.wait: did you mean method\.weight"):
        run(tmp_path, "mine", **{"plugin": str(file), "method.wait": "3"})
    with pytest.raises(FileNotFoundError, match=r"run\.plugin"):
        parse(["--plugin", str(tmp_path / "none.py")])
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match=r"bad\.py.*nothing_of_this_name"):
        parse(["--plugin", str(tmp_path / "bad.py")])


OWN_DATA = """
from torchvision.datasets import ImageFolder
from fastanc.pipelines.catalogue import register_dataset

@register_dataset("photos")
def photos(split, root):
    return ImageFolder(root / "photos") if split == "train" else None
"""


def test_a_data_set_in_a_users_file_is_trained_on_by_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "photos", a=10, b=10, c=10, d=10)
    file = tmp_path / "my_data.py"
    file.write_text(OWN_DATA)
    options = {
        "plugin": str(file),
        "data.name": "photos",
        "data.root": str(tmp_path / "data"),
        "data.val_share": "0.2",
        "data.batch": "16",
        "run.max_steps": "0",
        "schedule.epochs": "1",
        "teacher.rows": "fp32",
    }
    students = []
    for cache in ("off", "fill", "read"):
        folder = run(tmp_path, "l2", **options, **{"teacher.cache": cache, "run.name": cache})
        students.append(load_file(folder / "student.safetensors"))
        assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert all(torch.equal(students[0][key], other[key]) for other in students[1:] for key in other)
    stores = [Store.at(path) for path in sorted((tmp_path / "cache").glob("lenet5-photos-*"))]
    assert [store.num_images for store in stores] == [32, 8]
    assert all(store.complete(0) for store in stores)


def test_the_start_says_how_good_the_teacher_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some of the images at once, on all at the end, and never again; the training's bits do not depend on it."""
    teacher = run(tmp_path, "supervised", **{"student.name": "lenet5"}) / "student.safetensors"
    options = {"teacher.weights": str(teacher), "method.regulariser": "adversarial", "run.max_steps": "4"}
    monkeypatch.setattr("fastanc.training.judging._GREETED", 100)
    folder = run(tmp_path, "anc", **options)
    network, val = zoo.load_weights(teacher).eval(), open_dataset("digits", "val")
    (batch,) = val.batches(evaluation_picks(val.num_images, val.num_images), CentreCrop(32, 32))
    assert batch.labels is not None
    with torch.no_grad():
        right = (network(batch.images).logits.argmax(1) == batch.labels).double()
    some = right[[k * val.num_images // 100 for k in range(100)]].mean()
    said = [line["text"] for line in lines(folder, "note") if "own top-1" in line["text"]]
    told = f"the teacher's own top-1 is {100 * some:.2f} % on 100 of {val.num_images} validation images"
    assert [text.removeprefix("warning: ").partition(",")[0] for text in said] == [told]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val"]["teacher_top1"] == pytest.approx(right.mean().item())

    halves = {**options, "run.name": "halves"}
    run(tmp_path, "anc", **{**halves, "run.max_steps": "2"})
    resumed = run(tmp_path, "anc", **halves, **{"run.resume": "latest"})
    assert sum("own top-1" in line["text"] for line in lines(resumed, "note")) == 1
    assert (resumed / "student.safetensors").read_bytes() == (folder / "student.safetensors").read_bytes()
    monkeypatch.setattr("fastanc.training.run.Run._try_teacher", lambda self: [])
    silent = run(tmp_path, "anc", **{**options, "run.name": "silent"})
    assert (silent / "student.safetensors").read_bytes() == (folder / "student.safetensors").read_bytes()


@pytest.mark.parametrize("fold", ["false", "true"])
def test_a_teacher_s_weights_lie_as_its_images_do(fold: str, tmp_path: Path) -> None:
    """On CUDA each convolution would lay its weights out anew in every pass; a cache's identity does not see it."""
    options = {"teacher.name": "resnet8", "teacher.fold": fold, "run.out": str(tmp_path)}
    with open_run(parse(as_words({**TINY, **options}))) as started:
        teacher = started.game.teacher
        weights = [m.weight for m in teacher.network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(weights) > 8
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        digest = teacher.digest
        teacher.network.to(memory_format=torch.contiguous_format)
        assert teacher.digest == digest


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_method_that_plays_the_teacher_does_so_in_its_precision(
    precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    options = {**OWN["datafree"], "teacher.precision": precision, "run.out": str(tmp_path)}
    words = as_words({**TINY, **options, "method.type": "datafree", "run.compile": "false"})
    computed: set[torch.dtype] = set()
    with open_run(parse(words)) as started:
        started.game.teacher.network.bare.register_forward_hook(lambda *passed: computed.add(passed[2].dtype))
        _, batch = next(started.batches())
        moved = play(started.method, started.players, batch)
    assert computed == {dtype}
    assert all(term.isfinite() for move in moved for term in move.played.terms.values())
