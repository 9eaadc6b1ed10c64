"""`fastanc init`: what it writes is read and trains, and follows from the images and networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastanc.cli import main
from fastanc.models.usual_views import usual_views
from fastanc.parsing import parse
from fastanc.pipelines.catalogue import open_splits


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty pictures of noise without labels, 90 x 120 px, in a folder whose name has a blank."""
    folder, rng = tmp_path / "my photos", np.random.default_rng(0)
    folder.mkdir()
    for k in range(40):
        pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")
    monkeypatch.chdir(tmp_path)
    return folder


def test_what_it_writes_is_a_recipe_that_trains(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--teacher", "torchvision:resnet18", "--weights", "random", "--student", "torchvision:resnet18"]
    # A teacher of unlabelled images says how many classes it knows; the student takes them.
    assert main(["init", "first.yaml", "--data", str(photos), *names]) == 0
    said = capsys.readouterr().out
    assert "38 images for training and 2 to validate on, no labels" in said
    assert "fastanc train --recipe first.yaml" in said
    config = parse(["--recipe", "first.yaml"], front=True)
    assert (config.data.image_px, config.data.resize_px, config.data.crop) == (224, 256, "resized")
    assert (config.data.batch, config.schedule.epochs, config.data.views) == (16, 300, 30)
    assert (config.run.name, config.data.flip) == ("first", True)
    assert config.optimizer.lr == pytest.approx(0.05 * 16 / 64)
    before = Path("first.yaml").read_bytes()
    assert main(["init", "first.yaml", "--data", str(photos), *names]) == 2
    assert "first.yaml exists: name another file" in capsys.readouterr().err
    assert Path("first.yaml").read_bytes() == before


def test_a_labelled_set_of_small_images_trains_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    words = ["--data", "digits", "--teacher", "resnet14", "--weights", "random", "--student", "resnet8"]
    assert main(["init", "small.yaml", *words]) == 0
    config = parse(["--recipe", "small.yaml"], front=True)
    assert (config.data.image_px, config.data.crop, config.data.flip) == (32, "padded", False)
    assert "10 classes" in Path("small.yaml").read_text()
    assert "the teacher's rows will take" in capsys.readouterr().out
    assert main(["train", "--recipe", "small.yaml", "--run.max_steps", "2"]) == 0


OWN = """
import fastanc
from torch import nn


@fastanc.register_network("own")
def own(width=4, num_classes=10):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
"""


def test_networks_of_a_plugin_go_and_the_recipe_names_its_file(photos: Path) -> None:
    Path("own, nets.py").write_text(OWN)
    words = ["--data", str(photos), "--teacher", "own", "--weights", "random", "--student", "own"]
    # Of a name with a comma, which in braces would be two.
    assert main(["init", "mine, too.yaml", *words, "--plugin", "own, nets.py"]) == 0
    config = parse(["--recipe", "mine, too.yaml"], front=True)
    assert config.run.name == "mine, too"
    assert config.run.plugin == str(photos.parent / "own, nets.py")
    assert (config.teacher.name, config.student.name) == ("own", "own")


BIG_AND_SMALL = """
import fastanc
from torch import nn


def net(width, num_classes):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


@fastanc.register_network("broad")
def big(num_classes=10):
    return net(8, num_classes)


@fastanc.register_network("narrow")
def small(num_classes=10):
    return net(4, num_classes)
"""


def test_what_a_run_would_refuse_of_a_teacher_is_refused_before_a_recipe_is_written(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nets.py").write_text(BIG_AND_SMALL)
    words = ["init", "r.yaml", "--data", str(photos), "--student", "narrow", "--plugin", "nets.py"]
    assert main([*words, "--teacher", "broad"]) == 2
    assert "does not say how many classes it knows" in capsys.readouterr().err
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)]
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), *head).state_dict(), "big.pth")
    assert main([*words, "--teacher", "narrow", "--weights", "big.pth"]) == 2
    assert "weights file big.pth does not fit" in capsys.readouterr().err
    assert not Path("r.yaml").exists()
    assert main([*words, "--teacher", "broad", "--weights", "big.pth"]) == 0
    text = Path("r.yaml").read_text()
    said = (
        "  # mean: [0.485, 0.456, 0.406]    # from the data set; if it was trained with others, say which\n"
    )
    assert said in text, "photographs are normalised as ImageNet's, unless their weights say otherwise"
    # What is written is what a run takes: with the line said instead of commented nothing changes.
    Path("said.yaml").write_text(text.replace("  # mean:", "  mean:").replace("  # std:", "  std:"))
    teacher = parse(["--recipe", "said.yaml"], front=True).teacher
    assert teacher.mean == (0.485, 0.456, 0.406)
    assert teacher.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("folder", "out"),
    [
        ("a, b", "c, d}.yaml"),
        ("{braces: #1", "[list].yaml"),
        ("null", "none.yaml"),
        ("ends:", "ü.yaml"),
        ("-dash", "a: b.yaml"),
        ('it\'s "so" ' + "very " * 40 + "long", "b\\c.yaml"),
    ],
)
def test_any_name_is_read_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / folder / label).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / folder / label / f"{k}.png"
            )
    networks = ["--teacher", "lenet5", "--weights", "random", "--student", "lenet5_half"]
    assert main(["init", out, f"--data={folder}", *networks]) == 0
    config = parse([f"--config_path={out}"])
    assert (config.data.name, config.run.name) == (folder, out.removesuffix(".yaml"))
    assert config.teacher.weights == "random"
    # Of few images all are a batch: one of 16, the least otherwise, would be refused.
    assert config.data.batch == open_splits(folder, None)[0].num_images < 16
    assert "20 steps" not in Path(out).read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x.txt"], "let it end in .yaml"),
        (["two\nlines.yaml"], "fastanc: two\nlines.yaml: run.name 'two\\nlines' is no folder's name"),
        (["x.yaml", "--teacher", "resnet13"], "teacher.name"),
        (["x.yaml", "--student", "resnet13"], "student.name"),
        (["x.yaml", "--data", "nowhere"], "data.name"),
        (["x.yaml", "--weights", "none.pth"], "teacher.weights: there is no file none.pth"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    right = {"--data": "digits", "--teacher": "resnet14", "--weights": "random", "--student": "resnet8"}
    right |= dict(zip(words[1::2], words[2::2]))
    assert main(["init", words[0], *(part for pair in right.items() for part in pair)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))


def test_the_usual_size_is_the_librarys() -> None:
    assert usual_views("torchvision:resnet50@IMAGENET1K_V2")[:2] == (224, 232)  # type: ignore[index]
    assert usual_views("torchvision:efficientnet_b3")[:2] == (300, 320)  # type: ignore[index]
    assert usual_views("resnet20")[:2] == (32, 32)  # type: ignore[index]
    assert usual_views("imagenet_resnet18")[:2] == (224, 256)  # type: ignore[index]
    assert usual_views("a_plugins_own") is None
    timm = pytest.importorskip("timm")
    found = usual_views("timm:tf_efficientnet_lite0")
    says = timm.models.get_pretrained_cfg("tf_efficientnet_lite0")
    assert found is not None
    assert found[:2] == (says.input_size[-1], int(says.input_size[-1] / says.crop_pct))


@pytest.mark.parametrize(
    ("classes", "labelled", "method"),
    [
        (2, False, {"kind": "kd", "alpha": 1.0, "temperature": 1.0}),
        (2, True, {"kind": "kd", "alpha": 1.0, "temperature": 1.0}),
        (3, False, {"kind": "dist", "labels_weight": 0.0}),
        (3, True, {"kind": "dist", "labels_weight": 0.0}),
    ],
)
def test_the_loss_follows_the_teachers_classes_and_reads_no_label(
    photos: Path, classes: int, labelled: bool, method: dict[str, object]
) -> None:
    big, small = f"broad{classes}{labelled}", f"narrow{classes}{labelled}"  # names are one process's
    Path("nets.py").write_text(BIG_AND_SMALL.replace('"broad"', f'"{big}"').replace('"narrow"', f'"{small}"'))
    if labelled:  # folders of two classes more than the teacher has
        for k, path in enumerate(sorted(photos.iterdir())):
            home = photos / f"class {k % (classes + 2)}"
            home.mkdir(exist_ok=True)
            path.rename(home / path.name)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)]
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), *head).state_dict(), "big.pth")
    words = ["--data", str(photos), "--student", small, "--plugin", "nets.py"]
    assert main(["init", "r.yaml", *words, "--teacher", big, "--weights", "big.pth"]) == 0
    config = parse(["--recipe", "r.yaml"], front=True)
    assert {name: getattr(config.method, name) for name in method} == method
    assert not config.method.reads_labels
    sizes = ["--data.image_px", "32", "--data.resize_px", "32", "--run.max_steps", "1"]
    assert main(["train", "--recipe", "r.yaml", *sizes]) == 0
