"""Configuration: every recipe parses, every mistake is one sentence that names the field."""

from __future__ import annotations

import ast
import inspect
from dataclasses import FrozenInstanceError
from importlib import import_module, resources
from pathlib import Path

import pytest

from fastanc.config import Config
from fastanc.methods.base import Method
from fastanc.parsing import configure, decode, dump, parse, recipe_path

RECIPES = sorted(Path(str(resources.files("fastanc.recipes"))).glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_parses_and_its_head_names_command_and_hardware(path: Path) -> None:
    config = parse(["--recipe", path.stem])
    assert config == parse(["--config_path", str(path)])
    head = path.read_text()
    assert head.startswith("# Command:")
    assert "# Hardware:" in head
    assert "# Result:" in head


def test_no_argument_is_the_digits_recipe() -> None:
    assert parse([]) == parse(["--recipe", "digits_anc"])


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    config = parse(
        ["--recipe", "cifar10_resnet56_resnet20", "--method.type", "kd", "--student.stages", "[a, b]"]
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert parse(["--config_path", str(file)]) == config


def test_override_wins_over_recipe_and_types_are_kept() -> None:
    config = parse(["--recipe", "digits_teacher", "--optimizer.lr=1e-3", "--schedule.epochs", "3"])
    assert (config.optimizer.lr, config.schedule.epochs, config.student.name) == (1e-3, 3, "resnet14")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "digits_ank"], ["digits_ank", "did you mean digits_anc"]),
        (["--optimizer.lrr", "1"], ["optimizer.lrr", "did you mean optimizer.lr"]),
        (["--optimiser.lr", "1"], ["optimiser", "did you mean optimizer"]),
        (["--method.lamda_data", "1"], ["method.lamda_data", "did you mean method.lambda_data"]),
        (["--method.type", "ank"], ["method.type", "anc"]),
        (["--method", "anc"], ["method", "{type: anc}"]),
        (["--schedule.epochs", "many"], ["schedule.epochs", "many"]),
        (["--schedule.epochs", "-1"], ["schedule.epochs", "-1"]),
        (["--data.batch", "0"], ["data.batch"]),
        (["--teacher.cache", "write"], ["teacher.cache", "fill"]),
        (["--run.precision", "int8"], ["run.precision", "bf16"]),
        (["--data.batch"], ["--data.batch", "value"]),
        (["data.batch", "3"], ["data.batch"]),
        (["--optimizer.name", "lion"], ["lion", "adamw"]),
    ],
)
def test_mistake_is_one_sentence_that_names_it(args: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse(args)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence


def test_fields_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().run.seed = 1  # type: ignore[misc]


def _config_classes() -> list[type]:
    decode({})  # discovers the methods
    methods = [Method.get_choice_class(name) for name in Method.get_known_choices()]
    groups = ["fastanc.config", "fastanc.optimizers"]
    named = [
        c for m in groups for c in vars(import_module(m)).values() if inspect.isclass(c) and c.__module__ == m
    ]
    return [c for c in [*named, *methods] if hasattr(c, "__dataclass_fields__")]


def test_every_field_is_documented_below_itself() -> None:
    classes = _config_classes()
    assert len(classes) > 8
    for cls in classes:
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for field, after in zip(body, [*body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{cls.__name__}.{ast.unparse(field.target)} has no docstring below it"


def test_recipe_path_takes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {name: mine}")
    assert recipe_path(str(file)) == file
    assert parse(["--config_path", str(file)]).run.name == "mine"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "/tmp", "a\nb", "a\tb"])
def test_a_runs_name_is_one_folders(name: str) -> None:
    with pytest.raises(ValueError, match=r"run\.name .* is no folder's name: write one without /"):
        parse(["--run.name", name])


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["--recipe", "own_data", "--data.image_px", "192"], (192, 219)),  # 192 * 256 / 224 = 219.4
        (["--recipe", "own_data", "--data.image_px", "192", "--data.resize_px", "192"], (192, 192)),
        (["--recipe", "cifar_anc", "--data.image_px", "40"], (40, 40)),  # as the recipe: equal
        (["--recipe", "digits_anc", "--data.image_px", "224"], (224, 256)),  # the recipe has neither
        (["--recipe", "digits_anc", "--data.image_px", "64"], (64, 64)),
    ],
)
def test_evaluation_scales_as_views_do(words: list[str], sizes: tuple[int, int]) -> None:
    data = parse(words).data
    assert (data.image_px, data.resize_px) == sizes
    fields = {word.removeprefix("--"): int(value) for word, value in zip(words[2::2], words[3::2])}
    data = configure(words[1], fields).data
    assert (data.image_px, data.resize_px) == sizes
    data = configure(
        words[1], {"data": {name.partition(".")[2]: value for name, value in fields.items()}}
    ).data
    assert (data.image_px, data.resize_px) == sizes


def test_a_recipe_that_says_one_size_has_both(tmp_path: Path) -> None:
    recipe = tmp_path / "none.yaml"
    recipe.write_text("optimizer: {lr: 0.1}\n")
    assert parse(["--recipe", str(recipe), "--data.image_px", "112"]).data.resize_px == 128
    for px, resized in ((32, 32), (96, 110), (224, 256), (384, 439)):
        recipe = tmp_path / "sizes.yaml"
        recipe.write_text(f"data: {{image_px: {px}}}\n")
        assert parse(["--recipe", str(recipe)]).data.resize_px == resized


@pytest.mark.parametrize("words", [["--data.image_px", "many"], ["--data.image_px", "null"]])
def test_a_size_that_is_no_number_is_named_and_not_the_one_that_follows(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data\.image_px"):
        parse(["--recipe", "own_data", *words])


def test_a_recipes_weights_are_its_own_teachers() -> None:
    other = parse(["--recipe", "cifar10_resnet56_resnet20", "--teacher.name", "resnet110_v1"]).teacher
    assert (other.weights, other.recipe) == (None, None)
    same = parse(["--recipe", "cifar10_resnet56_resnet20", "--teacher.name", "resnet56_v1"]).teacher
    assert same.weights == "resnet56-4bfd9763.th"
    given = parse(["--teacher.name", "resnet110", "--teacher.weights", "mine.pth"]).teacher
    assert given.weights == "mine.pth"
    assert configure("digits_anc", {"teacher.name": "resnet110"}).teacher.recipe is None


def test_own_images_do_not_start_from_the_digits(tmp_path: Path) -> None:
    own, digits = parse(["--data.name", str(tmp_path)]), parse(["--data.name", "digits"])
    assert (own.data.image_px, own.data.flip, own.teacher.recipe) == (224, True, None)
    assert (digits.data.image_px, digits.teacher.recipe) == (32, "digits_teacher")
