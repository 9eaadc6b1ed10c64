"""What a user brings from outside the package, each in one file: a network, a data set, a method."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastanc.cache.store import Store
from fastanc.cli import main as command
from fastanc.methods.base import Method
from fastanc.models import registered, zoo
from fastanc.models.libraries import Shape
from fastanc.models.registered import make_registered, register_network
from fastanc.parsing import parse
from fastanc.pipelines import catalogue
from fastanc.train import train
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

NETWORK = '''
"""A network of my own."""
import fastanc
from torch import nn

@fastanc.register_network("tiny")
class Tiny(nn.Module):
    def __init__(self, num_classes, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x):
        return self.head(self.body(x))
'''
DATA = '''
"""A data set of my own: noise of two colours."""
import fastanc, numpy as np

@fastanc.register_dataset("colours")
def colours(split, root):
    draw = np.random.default_rng(split == "val")
    labels = draw.integers(0, 2, 96)
    images = draw.integers(0, 100, (96, 32, 32, 3), np.uint8)
    images[..., 0] += (100 * labels[:, None, None]).astype(np.uint8)
    return images, labels
'''
METHOD = '''
"""A method of my own: signs."""
from dataclasses import dataclass
import fastanc

@fastanc.register_method("signs")
@dataclass(frozen=True, kw_only=True)
class Signs(fastanc.Method):
    weight: float = 1.0
    needs = frozenset({"logits"})

    def student_play(self, nets, batch, out):
        return fastanc.Played({"signs": self.weight * (out.logits - batch.target.logits.sign()).square().mean()})
'''


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test register what it likes, as a process of its own could."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert Method.get_known_choices()  # which finds fastanc's own once
    for owner, registry in (
        (registered, "_MAKERS"),
        (catalogue, "_REGISTERED"),
        (Method, "_choice_registry"),
    ):
        monkeypatch.setattr(owner, registry, dict(getattr(owner, registry)))


def run(tmp_path: Path, code: str, **fields: str) -> Path:
    """Write a plugin file and train a few steps with it through the command."""
    file = tmp_path / "mine.py"
    file.write_text(code)
    chosen = {
        **LENETS,
        "run.out": str(tmp_path),
        "run.name": "run",
        "run.max_steps": "3",
        "data.batch": "16",
        **fields,
    }
    assert command(["train", "--plugin", str(file), *as_words(chosen)]) == 0
    return tmp_path / "run"


def test_a_network_from_a_file_is_trained_and_exported_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, NETWORK, **{"student.name": "tiny"})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["student"] == "tiny"
    assert summary["params"] == 6 * 3 * 25 + 6 + 24 * 10 + 10
    assert (
        summary["teacher_params"] == (75 + 1) * 6 + (150 + 1) * 16 + (400 + 1) * 120 + 121 * 84 + 85 * 10
    )  # LeNet-5 of RGB
    monkeypatch.setattr(registered, "_MAKERS", {})  # as in a process of its own
    words = ["export", str(folder), str(tmp_path / "out"), "--formats", "safetensors"]
    assert command(words) == 2
    said = capsys.readouterr().err
    assert "network 'tiny' is unknown" in said
    assert "--plugin" in said
    (tmp_path / "again.py").write_text(NETWORK)
    assert command([*words, "--plugin", str(tmp_path / "again.py")]) == 0
    trained, exported = (load_file(place / "student.safetensors") for place in (folder, tmp_path / "out"))
    assert (
        trained.keys()
        == exported.keys()
        == {f"{part}.{end}" for part in ("body.0", "head") for end in ("weight", "bias")}
    )
    assert all(torch.equal(trained[key], exported[key]) for key in trained)
    network = zoo.load_weights(tmp_path / "out" / "student.safetensors")
    assert network(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).logits.shape == (4, 10)


def test_a_data_set_from_a_file_is_trained_on_by_its_name(tmp_path: Path) -> None:
    folder = run(
        tmp_path, DATA, **{"data.name": "colours", "method.type": "supervised", "student.name": "lenet5"}
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dataset"] == "colours"
    assert 0 <= summary["val"]["error_pct"] <= 100


def test_a_method_from_a_file_is_played_by_its_name(tmp_path: Path) -> None:
    folder = run(tmp_path, METHOD, **{"method.type": "signs", "run.log_every": "1"})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "student/signs" in line] == [0, 1, 2]


def test_a_name_that_is_taken_is_refused_and_the_same_file_is_not() -> None:
    def make(num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes))

    assert register_network("flat")(make) is make
    register_network("flat")(make)
    with pytest.raises(ValueError, match=r"'flat' is taken by .*make: choose another name"):
        register_network("flat")(lambda num_classes: make(num_classes))
    with pytest.raises(ValueError, match="'a:b' is no name"):
        register_network("a:b")
    assert zoo.build("flat", num_classes=4, image_px=8)(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 4)


def test_a_class_that_asks_for_more_is_told() -> None:
    @register_network("asks-more")
    class AsksMore(torch.nn.Module):
        def __init__(self, width: int, num_classes: int, *layers: int, bias: bool = True):
            super().__init__()

    with pytest.raises(ValueError, match=r"'asks-more': .*AsksMore asks for width, but only num_classes"):
        zoo.build("asks-more", num_classes=3)


def test_a_function_gets_what_it_takes_and_must_return_a_network() -> None:
    seen = {}

    @register_network("asks")
    def asks(image_px: int, **others: int) -> torch.nn.Module:
        seen.update(others, image_px=image_px)
        return torch.nn.Identity()

    make_registered("asks", Shape(5, 1, 28))
    assert seen == {"num_classes": 5, "in_channels": 1, "image_px": 28}
    register_network("wrong")(lambda: "a string")
    with pytest.raises(ValueError, match="network 'wrong' is a str: its function must return an nn.Module"):
        make_registered("wrong", Shape(5, 1, 28))
    with pytest.raises(ValueError, match="give the same object again, or name the Python file"):
        make_registered("object:__main__.Nobody", Shape(5, 1, 28))


STAGES = '''
"""A method that reads stage maps, as short as it can be."""
from dataclasses import dataclass
import fastanc

@fastanc.register_method("last_map")
@dataclass(frozen=True, kw_only=True)
class LastMap(fastanc.Method):
    needs = frozenset({"stages"})

    def student_play(self, nets, batch, out):
        mine, theirs = (outputs.stages[-1].mean((2, 3)) for outputs in (out, batch.target))
        return fastanc.Played({"maps": (mine.mean(1) - theirs.mean(1)).square().mean()})
'''


def test_a_method_that_reads_stages_needs_to_say_nothing_else(tmp_path: Path) -> None:
    folder = run(tmp_path, STAGES, **{"method.type": "last_map", "run.log_every": "1"})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "student/maps" in line] == [0, 1, 2]


def test_cache_build_makes_the_views_that_a_run_asks_for(tmp_path: Path) -> None:
    """Fresh views, two of an image in a batch: epoch e shows views 2 e and 2 e + 1."""
    fields = {
        **LENETS,
        "data.views": "0",
        "data.views_per_image": "2",
        "data.share": "0.1",
        "data.batch": "16",
        "schedule.epochs": "2",
        "method.type": "l2",
        "teacher.cache": "fill",
        "teacher.cache_dir": str(tmp_path / "cache"),
        "run.out": str(tmp_path),
    }
    for job in (["cache", "build"], ["train", "--teacher.cache", "read"]):
        words = (
            [*job[:2], *as_words(fields), *job[2:]]
            if job[0] == "cache"
            else [job[0], *as_words(fields), *job[1:]]
        )
        assert command(words) == 0
    (cache,) = (tmp_path / "cache").glob("lenet5-digits-32px-*")
    assert Store.at(cache).views() == [0, 1, 2, 3]


def test_a_plugin_finds_the_file_beside_it_and_there_is_one_plugin(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text(NETWORK)
    folder = run(tmp_path, "import beside_it\n", **{"student.name": "tiny"})
    assert json.loads((folder / "summary.json").read_text())["student"] == "tiny"
    with pytest.raises(ValueError, match="give one --plugin, not 2"):
        parse(["--plugin", "a.py", "--run.plugin", "b.py"])


def test_a_run_goes_on_from_any_folder_however_its_plugin_was_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "mine.py").write_text(NETWORK)
    (away / "link").symlink_to(home)
    chosen = {
        **LENETS,
        "run.out": str(tmp_path),
        "run.name": "run",
        "data.batch": "16",
        "student.name": "tiny",
    }
    words = as_words({**chosen, "run.max_steps": "2", "run.checkpoint_every": "1", "schedule.epochs": "1"})
    monkeypatch.chdir(home)
    folder = train(parse(["--plugin", "./mine.py", *words]))
    for place, file in ((home, "mine.py"), (away, "../home/mine.py"), (away, "link/mine.py")):
        monkeypatch.chdir(place)
        assert train(parse(["--plugin", file, *words, "--resume", "latest"])) == folder
    more = ["--run.max_steps", "3", "--resume", "latest"]
    assert train(parse(["--config_path", str(folder / "config.yaml"), *more])) == folder
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3
    (home / "other.py").touch()
    with pytest.raises(ValueError, match=r"written with run\.plugin .*home/mine\.py"):
        train(parse(["--plugin", str(home / "other.py"), *words, "--resume", "latest"]))


def test_what_is_defined_again_takes_its_name_over(tmp_path: Path) -> None:
    """A script that is also its own plugin file, for each of the three doors; another file's is refused."""
    file = tmp_path / "all_three.py"
    file.write_text(
        NETWORK.replace('"tiny"', '"thrice"')
        + DATA.replace("colours", "thrice")
        + METHOD.replace("signs", "thrice")
    )
    other = tmp_path / "another.py"
    other.write_text(METHOD.replace("signs", "thrice"))
    for name, path in (("one", file), ("two", file), ("three", other)):
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        if path is file:
            spec.loader.exec_module(module)
            continue
        with pytest.raises(ValueError, match="the method name 'thrice' is taken by two"):
            spec.loader.exec_module(module)
