"""fastanc.compress(): a user's own networks and images, from a script; what the command does, bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import fastanc
from fastanc.config import Config
from fastanc.parsing import configure, parse
from support.images import flat_folder

# The script of a practitioner: networks of their own on a folder of unlabelled photographs.
SCRIPT = """
import sys
import fastanc
import torch
from torch import nn


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())


@fastanc.register_network("big")
class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(32, 7)

    def forward(self, x):
        return self.head(self.body(x))


@fastanc.register_network("small")
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 8), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        return self.head(self.body(x))


if __name__ == "__main__":
    photos, weights, out, steps = sys.argv[1:]
    teacher = Big()
    teacher.load_state_dict(torch.load(weights))
    torch.manual_seed(0)  # as --run.seed 0 does before it builds the student
    result = fastanc.compress(
        teacher, Small(), photos, "anc", image_px=32, epochs=3, batch=16, out=out, cache=out + "-cache",
        fields={"run.max_steps": int(steps), "run.checkpoint_every": 2, "data.views": 2, "teacher.rows": "fp32"},
    )
    print(result.metrics, result.folder, type(result.student).__name__)
"""
TWIN = {
    "recipe": "own_data",
    "teacher.name": "big",
    "student.name": "small",
    "method.type": "anc",
    "data.image_px": "32",
    "data.resize_px": "32",
    "data.batch": "16",
    "data.views": "2",
    "schedule.epochs": "3",
    "teacher.rows": "fp32",
    "run.checkpoint_every": "2",
    "run.max_steps": "0",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the script, 64 photographs without labels, and the teacher's weights."""
    home = tmp_path_factory.mktemp("practitioner")
    flat_folder(home / "photos", 64, size=(60, 48))
    (home / "script.py").write_text(SCRIPT)
    code = "import torch, script; torch.manual_seed(5); torch.save(script.Big().state_dict(), 'teacher.pt')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=home)
    return home


def script(home: Path, out: str, steps: int = 0) -> list[str]:
    return [
        str(home / "script.py"),
        str(home / "photos"),
        str(home / "teacher.pt"),
        str(home / out),
        str(steps),
    ]


def python(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=600, cwd=home, env=env
    )


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "student.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """Return the folder of an uninterrupted run of the script."""
    done = python(home, *script(home, "whole"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agreement_pct" in done.stdout
    assert done.stdout.strip().endswith("Small")
    return home / "whole"


def test_networks_of_a_script_on_unlabelled_photographs(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["val"]) == {"agreement_pct", "teacher_kl"}
    assert summary["student"] == "object:__main__.Small"
    assert summary["teacher"] == "object:__main__.Big"
    held_out = round(100 / 100 * summary["val"]["agreement_pct"], 6)
    assert 0 <= held_out <= 100
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert {"student/fool", "student/data", "discriminator/discriminate"} <= {
        key for line in lines for key in line
    }
    assert len([line for line in lines if line["kind"] == "val"]) == 3


def test_the_command_s_twin_has_the_same_weights_bit_for_bit(home: Path, whole: Path) -> None:
    fields = {
        **TWIN,
        "plugin": str(home / "script.py"),
        "data.name": str(home / "photos"),
        "teacher.weights": str(home / "teacher.pt"),
        "teacher.cache_dir": str(home / "twin-cache"),
        "run.out": str(home),
        "run.name": "twin",
    }
    done = python(home, "-m", "fastanc.train", *(word for k, v in fields.items() for word in (f"--{k}", v)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(weights(home / "twin"), weights(whole))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (whole, home / "twin"))
    assert ours["val"] == theirs["val"]
    assert theirs["student"] == "small"


def test_killed_and_called_again_it_ends_as_if_nothing_had_been(home: Path, whole: Path) -> None:
    for attempt in range(5):  # a busy machine may see the first checkpoint when all is over
        out = f"killed-{attempt}"
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, *script(home, out)], cwd=home, env=env, **quiet)
        while not list((home / out / "checkpoints").glob("step-*/COMPLETE")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (home / out / "summary.json").exists():
            break
    assert not (home / out / "summary.json").exists(), "it was never killed in time"
    done = python(home, *script(home, out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from" in done.stderr
    assert same(weights(home / out), weights(whole))


def test_two_processes_of_a_launched_script(home: Path, whole: Path) -> None:
    root = Path(fastanc.__file__).parent
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(root / "recipes" / "launch" / "cpu2.yaml"),
    ]
    done = python(home, *launch, "--main_process_port", "0", *script(home, "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((home / "two" / "summary.json").read_text())
    assert summary["world"] == 2
    assert done.stdout.count("agreement_pct") == 2  # every process has the result
    one, two = weights(whole), weights(home / "two")
    assert one.keys() == two.keys()
    assert not same(one, two)  # each process normalises by its own part of the batch


def test_report_and_export_take_its_folder(home: Path, whole: Path) -> None:
    done = python(home, "-m", "fastanc.cli", "report", str(whole), "--out", str(home / "report.html"))
    assert done.returncode == 0, done.stderr
    assert "Small" in (home / "report.html").read_text()
    export = ["-m", "fastanc.cli", "export", str(whole), str(home / "out"), "--formats", "torch_export"]
    done = python(home, *export)
    assert done.returncode == 2
    assert "give the same object again, or name the Python file that registers its class" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = python(home, *export, "--plugin", str(home / "script.py"))
    assert done.returncode == 0, done.stderr
    program = torch.export.load(home / "out" / "student.pt2").module()
    assert program(torch.rand(3, 3, 32, 32)).shape == (3, 7)


class Tiny(nn.Module):
    """A classifier of K classes of 3 x S x S images."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Items(torch.utils.data.Dataset):
    """Items of a map-style Dataset, (image, label) or image alone."""

    def __init__(self, images: list, labels: list[int] | None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> object:
        return self.images[i] if self.labels is None else (self.images[i], self.labels[i])


def noise(count: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), np.uint8)


def quick(tmp_path: Path, **options: object) -> dict[str, object]:
    fields = {"run.max_steps": 2, "data.views": 1, "run.eval_every": 0}
    return {"image_px": 16, "batch": 8, "out": tmp_path / "run", "cache": None, "fields": fields, **options}


@pytest.mark.parametrize("kind", ["arrays", "images", "dataset", "tensors", "pictures"])
def test_every_kind_of_data_in_memory(tmp_path: Path, kind: str) -> None:
    images, labels = noise(48, 16), [k % 4 for k in range(48)]
    data = {
        "arrays": (images, np.array(labels)),
        "images": images,
        "dataset": Items(list(images), labels),
        "tensors": Items([torch.from_numpy(image).permute(2, 0, 1) for image in images], None),
        "pictures": Items(
            [Image.fromarray(image).resize((20 + k % 5, 18)) for k, image in enumerate(images)], labels
        ),
    }[kind]
    labelled = kind in ("arrays", "dataset", "pictures")
    torch.manual_seed(0)
    student = Tiny(4, 4)
    result = fastanc.compress(Tiny(8, 4), student, data, "l2", **quick(tmp_path))
    assert ("error_pct" in result.metrics) == labelled
    assert "agreement_pct" in result.metrics
    assert result.student is student
    assert not result.student.training
    assert same(weights(result.folder), dict(student.state_dict()))


def test_a_method_as_an_object_and_a_validation_set(tmp_path: Path) -> None:
    images = noise(40, 16)
    train, val = (images[:32], np.arange(32) % 3), (images[32:], np.arange(8) % 3)
    method = fastanc.methods.Kd(alpha=0.3, temperature=2.0)
    result = fastanc.compress(Tiny(8, 3), Tiny(4, 3), train, method, val=val, **quick(tmp_path))
    config = (result.folder / "config.yaml").read_text()
    assert "alpha: 0.3" in config
    assert "temperature: 2.0" in config
    assert 0 <= result.metrics["top1"] <= 1


def test_an_ensemble_of_teachers(tmp_path: Path) -> None:
    result = fastanc.compress([Tiny(8, 3), Tiny(5, 3)], Tiny(4, 3), noise(32, 16), "l2", **quick(tmp_path))
    assert (
        json.loads((result.folder / "summary.json").read_text())["teacher"]
        == "object:fastanc.models.ensemble.Ensemble"
    )


def test_a_teacher_of_other_classes(tmp_path: Path) -> None:
    """Without labels the student learns all of the teacher's; with labels the columns have to be said."""
    data = (noise(48, 16), np.arange(48) % 3)
    result = fastanc.compress(Tiny(8, 11), Tiny(4, 11), data, "l2", **quick(tmp_path))
    assert set(result.metrics) == {"agreement_pct", "teacher_kl"}
    kd = fastanc.methods.Kd(alpha=0.5)
    with pytest.raises(
        ValueError, match=r"the teacher knows 11 classes and data\.name .* has 3.*teacher\.classes"
    ):
        fastanc.compress(Tiny(8, 11), Tiny(4, 3), data, kd, **quick(tmp_path / "b"))
    options = quick(tmp_path / "c")
    options["fields"] = {**options["fields"], "teacher.classes": "7,0,10"}  # type: ignore[dict-item]
    result = fastanc.compress(Tiny(8, 11), Tiny(4, 3), data, kd, **options)
    assert {"top1", "agreement_pct"} <= set(result.metrics)
    with pytest.raises(ValueError, match="the student gives 5 logits where 11 classes are to be learnt"):
        fastanc.compress(Tiny(8, 11), Tiny(4, 5), data, "l2", **quick(tmp_path / "d"))


def test_what_is_given_is_left_in_peace(tmp_path: Path) -> None:
    """The teacher keeps weights and statistics; a student that comes in eval mode is trained all the same."""
    teacher = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    student = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    fastanc.compress(teacher, student.eval(), noise(32, 16), "l2", **quick(tmp_path))
    assert same(dict(teacher.state_dict()), before)
    assert int(student[1].num_batches_tracked) == 2


class Gain(Tiny):
    """A class whose code or attributes say more than its weights."""

    def __init__(self, gain: float):
        super().__init__(6, 3)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


def test_the_same_folder_goes_on_with_the_same_teacher_and_images_alone(tmp_path: Path) -> None:
    teacher, data = Tiny(8, 3), noise(32, 16)
    first = fastanc.compress(teacher, Tiny(4, 3), data, "l2", **quick(tmp_path))
    summary = (first.folder / "summary.json").read_text()
    again = fastanc.compress(teacher, Tiny(4, 3), data, "l2", **quick(tmp_path))
    assert (again.folder / "summary.json").read_text() == summary  # there was nothing left to do
    assert same(dict(again.student.state_dict()), dict(first.student.state_dict()))
    with pytest.raises(ValueError, match="was made with another teacher"):
        fastanc.compress(Tiny(8, 3), Tiny(4, 3), data, "l2", **quick(tmp_path))
    with pytest.raises(ValueError, match="was made with another training set"):
        fastanc.compress(teacher, Tiny(4, 3), data[::-1].copy(), "l2", **quick(tmp_path))


def test_a_cache_knows_teachers_of_equal_weights_by_what_they_answer(tmp_path: Path) -> None:
    plain, turned = Gain(1.0), Gain(-1.0)
    turned.load_state_dict(plain.state_dict())
    losses = []
    for name, teacher in (("a", plain), ("b", turned), ("c", plain)):
        torch.manual_seed(0)
        options = quick(tmp_path / name, cache=tmp_path / "cache")
        folder = fastanc.compress(teacher, Tiny(4, 3), noise(32, 16), "l2", **options).folder
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        losses.append(next(line["student/data"] for line in lines if "student/data" in line))
    assert losses[0] == losses[2] != losses[1]
    assert (
        len({path.name for path in (tmp_path / "cache").glob("*-16px-*")}) == 4
    )  # two teachers, train and val


def test_an_output_with_logits_by_name_is_read_by_name(tmp_path: Path) -> None:
    class Both(NamedTuple):
        features: Tensor
        logits: Tensor

    class Named(Tiny):
        def forward(self, x: Tensor) -> Both:  # type: ignore[override]
            features = self.body(x)
            return Both(features, self.head(features))

    network = Named(3, 3)
    tapped = fastanc.tap(network, image_px=16)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(tapped(images).logits, network(tapped.normalise(images)).logits)


@pytest.mark.parametrize("held", ["bare", "network", "student", "module"])
def test_a_student_may_hold_its_layers_under_any_name(tmp_path: Path, held: str) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, held, Tiny(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return -getattr(self, held)(x)

    student = Holder()
    result = fastanc.compress(Tiny(8, 3), student, noise(32, 16), "l2", **quick(tmp_path))
    assert result.student is student
    assert same(weights(result.folder), dict(student.state_dict()))


def test_networks_come_back_without_taps_and_frozen_where_they_were(tmp_path: Path) -> None:
    teacher, student = Tiny(8, 3), Tiny(4, 3)
    student.body[0].requires_grad_(False)
    before = student.body[0].weight.clone()
    fastanc.compress(teacher, student, noise(32, 16), "l2", **quick(tmp_path))
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training
    assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]
    assert torch.equal(student.body[0].weight, before)
    assert torch.jit.script(student)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (teacher, student) for m in n.modules())


def test_two_precisions_in_one_process(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp32"):
        options = quick(tmp_path / precision, resume="anew")
        options["fields"] = {**options["fields"], "run.precision": precision}  # type: ignore[dict-item]
        result = fastanc.compress(Tiny(8, 3), Tiny(4, 3), noise(32, 16), "l2", **options)
        assert "agreement_pct" in result.metrics


def test_a_validation_set_may_lack_a_class_and_must_fit_otherwise(tmp_path: Path) -> None:
    images = noise(48, 16)
    train = (images, np.arange(48) % 3)
    result = fastanc.compress(
        Tiny(8, 3), Tiny(4, 3), train, "l2", val=(images[:8], np.arange(8) % 2), **quick(tmp_path)
    )
    assert {"top1", "agreement_pct"} <= set(result.metrics)
    wrong = {
        "of 1: give both the same": images[:8, :, :, :1],
        "holds images of 12 px": images[:8, :12, :12],
    }
    for message, val in wrong.items():
        with pytest.raises(ValueError, match=message):
            fastanc.compress(Tiny(8, 3), Tiny(4, 3), train, "l2", val=val, **quick(tmp_path / "wrong"))
    with pytest.raises(ValueError, match="has no labels, and without a teacher there is nothing to measure"):
        fastanc.compress(Tiny(8, 3), Tiny(4, 3), train, "supervised", val=images[:8], **quick(tmp_path / "x"))


def test_fields_by_group_and_methods_by_class(tmp_path: Path) -> None:
    options = quick(tmp_path)
    options["fields"] = {**options["fields"], "optimizer": {"lr": 0.125}}  # type: ignore[dict-item]
    data = (noise(32, 16), np.arange(32) % 3)
    result = fastanc.compress(Tiny(8, 3), Tiny(4, 3), data, fastanc.methods.Kd, **options)
    config = configure("own_data", {"optimizer": {"lr": 0.125}})
    assert (config.optimizer.lr, config.optimizer.clip) == (0.125, 1.0)  # the recipe's other fields stay
    assert "lr: 0.125" in (result.folder / "config.yaml").read_text()


def test_where_no_method_is_named_it_is_the_recipes(tmp_path: Path) -> None:
    result = fastanc.compress(Tiny(8, 3), Tiny(4, 3), noise(32, 16), **quick(tmp_path))
    kept = parse(["--config_path", str(result.folder / "config.yaml")]).method
    assert kept == configure("own_data", {}).method == fastanc.methods.Dist(labels_weight=0.0)
    with pytest.raises(ValueError, match=r"two classes is: set method\.type to kd with method\.alpha 1"):
        fastanc.compress(Tiny(8, 2), Tiny(4, 2), noise(32, 16), **quick(tmp_path / "two"))
    kd = fastanc.methods.Kd(alpha=1.0)  # as it says
    assert fastanc.compress(Tiny(8, 2), Tiny(4, 2), noise(32, 16), kd, **quick(tmp_path / "two")).metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "teacher is None: give a network or a name"),
        ({"student": None}, "student is None"),
        ({"method": 3}, "method is 3: give a name or a fastanc.Method"),
        (
            {"fields": {"teacher.weights": "x.pt"}},
            r"teacher\.weights does nothing beside a teacher that is given",
        ),
    ],
)
def test_arguments_of_another_kind(tmp_path: Path, change: dict[str, object], message: str) -> None:
    given = {"teacher": Tiny(8, 3), "student": Tiny(4, 3), "data": noise(32, 16), "method": "l2"}
    with pytest.raises((TypeError, ValueError), match=message):
        fastanc.compress(**{**quick(tmp_path), **given, **change})


def test_a_method_that_misspells_its_needs_is_told() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Misspelt(fastanc.methods.L2):
        needs = frozenset({"logit"})

    with pytest.raises(
        ValueError, match=r"Misspelt\.needs is frozenset.*write a frozenset of descriptors, features"
    ):
        fastanc.players_of(Misspelt(), *(fastanc.tap(Tiny(4, 3), image_px=16) for _ in "ab"))
    with pytest.raises(ValueError, match="the student gives 5 logits where 3 classes"):
        fastanc.players_of(fastanc.methods.L2(), *(fastanc.tap(Tiny(4, k), image_px=16) for k in (5, 3)))
    with pytest.raises(TypeError, match="not torch.int64: convert them"):
        fastanc.tap(Tiny(4, 3), image_px=16)(torch.zeros(1, 3, 16, 16, dtype=torch.int64))


def test_wrong_arguments_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no field optimizer\.rate: valid ones are"):
        fastanc.compress(
            Tiny(8, 3), Tiny(4, 3), noise(32, 16), "l2", **quick(tmp_path, fields={"optimizer.rate": 1})
        )
    with pytest.raises(ValueError, match=r"method\.type 'l3' is unknown"):
        fastanc.compress(Tiny(8, 3), Tiny(4, 3), noise(32, 16), "l3", **quick(tmp_path))
    with pytest.raises(ValueError, match=r"images of this size|does not take 3 x 1 x 1|image_px"):
        fastanc.compress(Tiny(8, 3), Tiny(4, 3), noise(32, 16), "l2", **quick(tmp_path, image_px=1))


def test_train_is_called_with_a_configuration(tmp_path: Path) -> None:
    assert callable(fastanc.train)
    assert isinstance(Config(), Config)
    folder = fastanc.train(
        fastanc.configure(
            "own_data",
            {
                "data.name": "digits",
                "data.image_px": 32,
                "data.resize_px": 32,
                "teacher.name": "lenet5",
                "teacher.weights": "random",
                "teacher.cache": "off",
                "student.name": "lenet5_half",
                "run.out": str(tmp_path),
                "run.max_steps": 1,
                "data.batch": 16,
            },
        )
    )
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_script_that_is_stopped_says_where_it_was_saved(tmp_path: Path, number: str) -> None:
    script = f"""
import os, pathlib, signal, threading, time
import numpy as np, torch, fastanc

def strike():
    log = pathlib.Path("out/metrics.jsonl")
    while not (log.exists() and '"train"' in log.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.{number})

threading.Thread(target=strike, daemon=True).start()
torch.manual_seed(0)
images, labels = np.zeros((64, 16, 16, 3), np.uint8), np.arange(64) % 3
nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)) for _ in range(2)]
fields = {{"run.log_every": 1, "run.eval_every": 0, "run.max_steps": 20000}}
fastanc.compress(*nets, (images, labels), "l2", val=(images, labels), cache=None, out="out", batch=16,
                 epochs=20000, fields=fields)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    last = stopped.stderr.strip().splitlines()[-1]
    # As Python ends on Ctrl-C; 1 where a package that is first imported at exit (torch's tables) makes it forget.
    assert stopped.returncode in (-2, 1), stopped.stderr[-2000:]
    assert re.fullmatch(
        r"KeyboardInterrupt: interrupted after step \d+ of 20000, all of it saved in out; the same call goes on, .*",
        last,
    ), last
    assert [*(tmp_path / "out" / "checkpoints").glob("step-*/COMPLETE")]
    assert not (tmp_path / "out" / ".owner").exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"data.name": "digits"}, "data.name in fields is what the argument data says"),
        ({"method.type": "kd"}, "method.type in fields is what the argument method says"),
        ({3: 1}, "fields holds 3: its keys are names"),
        (["optimizer.lr"], "fields is .*: give a dictionary"),
    ],
    ids=str,
)
def test_fields_that_contradict_an_argument_or_are_none_are_refused(fields: Any, why: str) -> None:
    images = np.zeros((8, 8, 8, 3), np.uint8)
    with pytest.raises((ValueError, TypeError), match=why):
        fastanc.compress("lenet5", "lenet4", images, fields=fields)
