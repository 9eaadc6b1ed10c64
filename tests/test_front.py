"""The front door: help, text that stays text, ranges, and mistakes that are found before torch is imported."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml

import fastanc
from fastanc import early
from fastanc.arguments import local_path
from fastanc.cli import _parser
from fastanc.cli import main as command
from fastanc.config import Config
from fastanc.fields import Range, kinds
from fastanc.jobs.study import cells
from fastanc.jobs.study_file import load
from fastanc.manual import entries, manual
from fastanc.methods.base import Method
from fastanc.models.discriminators import TABLE1, _weights, discriminator
from fastanc.models.names import _names, check_name
from fastanc.parsing import configure, dump, method_names, parse
from fastanc.pipelines import catalogue
from fastanc.pipelines import names as dataset_names
from fastanc.train import main as train
from support.tiny_run import LENETS, as_words

TEXTS = [
    *(
        "/d/my #1 set",
        "12:30",
        "007",
        "5_000",
        "*best",
        "@x",
        "true",
        "no",
        "[a",
        "{x",
        "x:",
        "é漢\U0001f600",
    ),
    *(" lead", "trail ", "-x", "a=b", "a\nb", "'q'", '"d"', "!tag", "%d", "&a", "# c", "- a", "? a", "1e3"),
    *("0x1F", ".inf", ".nan", "2001-01-01", "<<", "=", "|", ">", "a: b", "\x07", "\udcff", "a\u2028b", "`x`"),
    *("a\\n", "a  b" * 40, "~"),
]
NASTY = [
    *(
        "",
        "nan",
        "inf",
        "-inf",
        "-1",
        "-0.5",
        "0",
        "1",
        "2",
        "0.5",
        "1e-4",
        "1e20",
        "1e400",
        "99999999999999999999",
    ),
    *(
        "null",
        "none",
        "true",
        "no",
        "off",
        "random",
        "12:30",
        "007",
        "5_000",
        "*best",
        "@x",
        "[a",
        "{x",
        "{}",
    ),
    *("[1, nan]", "a,b", "é", "x" * 1000, "-", "0x10"),
]


def own_methods() -> list[str]:
    """Return the methods that come with fastanc; other tests may have registered more."""
    return [n for n in method_names() if Method.get_choice_class(n).__module__.startswith("fastanc.methods.")]


def fields_of() -> Iterator[tuple[str, Any, list[str]]]:
    """Yield (dotted name, declared type, words that choose its method) of every field of the configuration."""
    for one in dataclasses.fields(Config):
        if one.name != "method":
            yield from _inside(one.default_factory, one.name, [])
    for name in own_methods():
        yield from _inside(Method.get_choice_class(name), "method", ["--method.type", name])


def _inside(owner: Any, prefix: str, words: list[str]) -> Iterator[tuple[str, Any, list[str]]]:
    for name, kind in kinds(owner).items():
        inner = [
            arg for arg in (kind, *get_args(kind)) if isinstance(arg, type) and dataclasses.is_dataclass(arg)
        ]
        yield f"{prefix}.{name}", kind, words
        for group in inner:
            yield from _inside(group, f"{prefix}.{name}", words)


def numbers_without_range(kind: Any) -> list[Any]:
    """Return the int and float types inside a declared type that no range stands beside."""
    if get_origin(kind) is Annotated:
        inner, *rules = get_args(kind)
        return [] if any(isinstance(rule, Range) for rule in rules) else numbers_without_range(inner)
    if kind in (int, float):
        return [kind]
    return [found for arg in get_args(kind) for found in numbers_without_range(arg)]


# ---- text


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_what_was_typed_from_every_source_and_reads_back(tmp_path: Path, text: str) -> None:
    typed = parse([f"--run.out={text}", "--data.root", text])
    assert (typed.run.out, typed.data.root) == (text, text)
    given = configure("digits_anc", {"run.out": text, "data.root": text})
    assert (given.run.out, given.data.root) == (text, text)
    file = tmp_path / "config.yaml"
    file.write_text(dump(given))
    assert parse(["--config_path", str(file)]) == given
    independent = yaml.safe_load(file.read_text())  # any reader of YAML finds the same text
    assert independent["run"]["out"] == text


@pytest.mark.parametrize("text", ["null", "None", "none", "NULL"])
def test_null_is_no_value_where_there_may_be_none_and_text_elsewhere(tmp_path: Path, text: str) -> None:
    typed = parse(["--run.name", text, "--data.root", text])
    assert (typed.run.name, typed.data.root) == (text, None)
    given = configure("digits_anc", {"data.root": text})  # in Python None is None
    assert given.data.root == text
    (tmp_path / "c.yaml").write_text(dump(given))
    assert parse(["--config_path", str(tmp_path / "c.yaml")]).data.root == text


def test_recipes_and_studies_keep_text(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "run: {name: 12:30, out: 007}\ndata: {root: no, flip: on}\nstudent: {stages: [on, 1:20]}\n"
    )
    config = parse(["--config_path", str(recipe)])
    assert (config.run.name, config.run.out, config.data.root) == ("12:30", "007", "no")
    assert (config.data.flip, config.student.stages) == (True, ("on", "1:20"))
    study = tmp_path / "s.yaml"
    study.write_text(
        f"title: 12:30\nrecipe: {recipe}\nseeds: [0]\n"
        "grid: [{none: {data.root: 007}, 1:20: {data.root: null, schedule.milestones: [0.5, 0.75]}}]\n"
    )
    loaded = load(str(study))
    assert loaded.title == "12:30"
    _, (first, second) = cells(loaded, tmp_path, 1.0, [])
    assert (first.row, second.row) == ("none", "1:20")
    assert (first.config.data.root, second.config.data.root) == ("007", None)
    assert second.config.schedule.milestones == (0.5, 0.75)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {batch: 3, batch: 4}", ["line 1", "'batch' is given twice"]),
        ("run: {name: *best}", ["line 1", "no YAML"]),
        ("run: {name: @x}", ["line 1", "quotes"]),
        ("run: {name: null}", ["run.name", "null", "text"]),
        ("- a\n- b", ["r.yaml is no recipe"]),
        ("", ["r.yaml is empty: write groups"]),
        ("# a comment\n", ["r.yaml is empty: write groups"]),
        ("data:\n\tbatch: 3", ["r.yaml, line 2 is no YAML", "by spaces, no tabs"]),
        ("run:\n  name: 'a\x01'", ["r.yaml, line 2 is no YAML"]),
        ("\ndaat: {batch: 3}", ["r.yaml, line 2: there is no field daat: did you mean data?"]),
        ("data:\n  batch: 3\n  batchh: 4", ["r.yaml, line 3: there is no field data.batchh"]),
        ("data: 5", ["r.yaml, line 1: data is a group of fields, not '5'"]),
        ("method:\n  type: [a]", ["r.yaml, line 2: method.type ['a'] is unknown"]),
        ("method:\n  type: anc\n\n  lambda_data: -1", ["r.yaml, line 4: method.lambda_data is '-1'"]),
        (
            "method:\n  discriminator_optimizer:\n    lr: -1",
            ["r.yaml, line 3: method.discriminator_optimizer.lr is '-1'"],
        ),
        ("data: {image_px: 64, resize_px: 48}", ["r.yaml: data.resize_px (48) must not be smaller"]),
        ("schedule: {epochs: null}", ["schedule.epochs", "null", "whole number"]),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        parse(["--config_path", str(tmp_path / "r.yaml")])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_words_mistake_is_not_laid_to_the_file_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("data: {batch: 0, image_px: 32}\nmethod: {type: kd, alpha: 7}\n")
    from_file = ["--config_path", str(file)]
    for words, told in (
        (["--data.batch", "x", "--method.alpha", "0"], "data.batch is 'x'"),
        (
            ["--data.batch", "8", "--data.image_px", "64", "--data.resize_px", "48"],
            "data.resize_px (48) must",
        ),
        (["--data.batch", "8", "--method.type", "kdd"], "method.type 'kdd'"),
        (["--data.batch", "8", "--method", "{type: kd, alpha: 9}"], "method.alpha is '9'"),
        (["--data.batch", "8", "--data.prefetch", "2"], f"{file}, line 2: method.alpha is '7'"),
    ):
        with pytest.raises(ValueError) as caught:
            parse([*from_file, *words])
        assert str(caught.value).startswith(told)
    assert parse([*from_file, "--data.batch", "8", "--method.alpha", "0"]).data.batch == 8


def test_a_folder_or_another_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run is a folder: name a .yaml file"):
        parse(["--config_path", str(tmp_path / "run")])
    (tmp_path / "run" / "config.yaml").write_text("run: {name: mine}")
    with pytest.raises(ValueError, match="run is a folder: name .*run/config.yaml"):
        parse(["--recipe", str(tmp_path / "run")])
    (tmp_path / "r.txt").write_text("run: {name: mine}")
    with pytest.raises(ValueError, match=r"r\.txt is no recipe by its name: give a file that ends in \.yaml"):
        parse(["--config_path", str(tmp_path / "r.txt")])


# ---- ranges


def test_every_number_of_the_configuration_has_a_range() -> None:
    assert [name for name, kind, _ in fields_of() if numbers_without_range(kind)] == []


def test_no_value_is_a_traceback_and_what_is_accepted_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    """All fields x all nasty values, at parse: a sentence that names the field, or values that are in range."""
    accepted = refused = 0
    known = list(fields_of())
    for name, _, words in known:
        for value in NASTY:
            config = None
            with suppress(FileNotFoundError), named(name):
                config = parse([*words, f"--{name}={value}"])
            if config is None:
                refused += 1
                continue
            accepted += 1
            numbers = [n for n in _leaves(dataclasses.asdict(config)) if isinstance(n, int | float)]
            assert all(math.isfinite(n) for n in numbers), (name, value)
    print(f"{len(known)} fields x {len(NASTY)} values: {accepted} accepted, {refused} refused")
    assert len(known) > 120
    assert accepted > 500
    assert refused > 2000


@pytest.mark.slow
def test_what_is_accepted_trains_or_is_refused_and_never_gives_nonsense(tmp_path: Path) -> None:
    """Runs of two steps of a sample of accepted values: no traceback, no hang, finite numbers, steps that count."""
    draw, runs, ends = random.Random(0), [], Counter[int]()
    for name, _, words in fields_of():
        for value in NASTY:
            if name in ("run.out", "run.plugin", "run.name", "run.compile") or len(value) > 100:
                continue
            with suppress(ValueError, OSError):
                parse([*words, f"--{name}={value}"])
                runs.append((words, name, value))
    total = len(runs)
    for number, (words, name, value) in enumerate(draw.sample(runs, 160)):
        fields = {
            **LENETS,
            "data.batch": "16",
            "data.share": "0.1",
            "run.max_steps": "2",
            "schedule.epochs": "2",
        }
        fields |= {
            "run.out": str(tmp_path),
            "run.name": f"r{number}",
            "teacher.cache_dir": str(tmp_path / "cache"),
        }
        fields |= {name: value}
        code = train([*as_words(fields), *words])  # a traceback would be an exception here
        ends[code] += 1
        assert code in (0, 2), (words, name, value)
        if code == 0:
            summary = json.loads((tmp_path / f"r{number}" / "summary.json").read_text())
            numbers = [n for n in _leaves(summary) if isinstance(n, float)]
            assert all(math.isfinite(n) for n in numbers), (words, name, value, summary)
            assert summary["steps"] > 0, (words, name, value)
    print(f"{total} accepted values, {sum(ends.values())} tried: {ends[0]} trained, {ends[2]} refused")
    assert ends[0] > 60  # of 160: what would not fit set or networks is refused


@contextmanager
def named(field: str) -> Iterator[None]:
    """Take a ValueError for a refusal if it is one sentence that names the field."""
    try:
        yield
    except ValueError as error:
        sentence = str(error)
        good = "\n" not in sentence and field.split(".")[-1] in sentence and len(sentence) < 600
        if not good:
            raise RuntimeError(f"{field}: {sentence}") from error
        raise FileNotFoundError(sentence) from None


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list | tuple):
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(one)
    else:
        yield tree


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("run.max_steps", -1),
            ("optimizer.clip", -1.0),
            ("optimizer.momentum", 1e9),
            ("optimizer.lr", math.nan),
        ),
        *(
            ("schedule.epochs", 10**20),
            ("schedule.gamma", math.inf),
            ("schedule.milestones", (0.5, math.nan)),
        ),
        *(("data.batch", None), ("data.batch", True), ("data.batch", 2.5), ("student.mean", (0.5, 255.0))),
        *(("run.name", 7), ("run.name", ""), ("data.flip", "maybe"), ("run.ema", 1.0)),
        *(("teacher.mean", (0.5, 0.5)), ("student.std", (0.2,) * 4), ("student.mean", ())),
    ],
)
def test_a_value_from_python_is_held_to_the_same_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        configure("digits_anc", {field: value})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data.pad=16000", "data.pad is '16000': it takes"),
        ("data.pad=32", r"data.pad \(32\) must be smaller than data.image_px \(32\)"),
        ("data.image_px=8192", "data.image_px is '8192'"),
        ("data.resize_px=8192", "data.resize_px is '8192'"),
        ("data.prefetch=1000", "data.prefetch is '1000'"),
        ("data.steps_per_epoch=1000000", "data.steps_per_epoch is '1000000'"),
        ("method.type=can method.width=50000", "method.width is '50000'"),
        ("method.type=can method.depth=100", "method.depth is '100'"),
        ("method.type=datafree method.latent_dim=50000", "method.latent_dim is '50000'"),
        ("method.type=datafree method.generator_width=4096", "method.generator_width is '4096'"),
        ("method.type=ksanc method.squeeze.global_dim=50000", "method.squeeze.global_dim is '50000'"),
    ],
)
def test_what_would_fill_the_memory_is_refused_by_its_field(words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse([f"--{word}" for word in words.split()])
    assert (
        parse(["--data.crop", "resized", "--data.pad", "40"]).data.pad == 40
    )  # which such views do not read


def test_networks_that_no_memory_holds_are_refused_before_they_are_built() -> None:
    for name in ("resnet60002", "resnet60002_v1", "wrn-60004-4", "wrn-10-5000"):
        with pytest.raises(ValueError, match="is too (deep|wide): take"):
            check_name(name)
    for layout in ("99999999", "65536-65536", "4096conv-65536", "-".join(["1"] * 1000)):
        with pytest.raises(ValueError, match="is too large for 512 inputs: take up to 64 layers"):
            discriminator(layout, 512)
    for layout in (*TABLE1, "512conv-64conv-128"):  # counted as they are built
        built = discriminator(layout, 512)
        weights = [p.numel() for p in built.parameters() if p.dim() > 1]
        assert sum(weights[:-1]) == _weights(
            [(int(part.removesuffix("conv")), "conv" in part) for part in layout.split("-")], 512
        )


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("Kd", {"temperature": -1}),
        ("Kd", {"temperature": math.nan}),
        ("Kd", {"alpha": None}),
        ("Anc", {"lambda_data": -1.0}),
        ("Kd", {"alpha": math.nan}),
        ("Can", {"depth": -1}),
        ("DataFree", {"fool": math.inf}),
    ],
)
def test_a_method_as_an_object_is_held_to_the_same_range(kind: str, knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"method.{next(iter(knobs))}"):
        getattr(fastanc.methods, kind)(**knobs)


def test_a_plugins_knobs_without_ranges_are_finite_and_never_null(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom typing import Any\nfrom fastanc import Method, register_method\n"
        "@register_method('front_test')\n@dataclass(frozen=True, kw_only=True)\nclass Mine(Method):\n"
        "    weight: float = 1.0\n    count: int = -3\n    word: str = ''\n"
        "    table: dict[str, float] | None = None\n"
        "    needs = frozenset({'logits'})\n"
        "    def __post_init__(self):\n        assert self.weight != 5\n"
    )
    words = ["--plugin", str(file), "--method.type", "front_test"]
    made: Any = parse(
        [*words, "--method.weight", "-2e3", "--method.word", "007", "--method.table", "{a: 1}"]
    ).method
    assert (made.weight, made.count, made.word, made.table) == (-2000.0, -3, "007", {"a": 1.0})
    for name, value in (
        ("weight", "nan"),
        ("weight", "null"),
        ("count", "inf"),
        ("count", "null"),
        ("count", "1.5"),
    ):
        with pytest.raises(ValueError, match=f"method.{name} is '{value}'"):
            parse([*words, f"--method.{name}", value])


# ---- early

MISTAKES = [
    (["--optimizer.lrr", "1"], "did you mean optimizer.lr"),
    (["--data.batch", "many"], "data.batch is 'many'"),
    (["--recipe", "digits_ank"], "did you mean digits_anc"),
    (["--config_path", "gone.yaml"], "gone.yaml"),
    (["--plugin", "gone.py"], "gone.py"),
    (["--data.name", "/gone/set"], "/gone/set does not exist"),
    (["--data.name", "cifra10"], "did you mean cifar10"),
    (["--student.weights", "gone.pt"], "student.weights: there is no file gone.pt"),
    (["--teacher.weights", "gone.pt", "--teacher.recipe", "null"], "there is no file gone.pt"),
    (["--student.weights", "."], "there is no file ./student.safetensors"),
    (["--student.name", "resnet21"], "6n+2"),
    (["--student.name", "resnet_18"], "resnet"),
    (["--student.name", "torchvision:resnet81"], "resnet18"),
    (["--student.name", "torchvision:resnet18@V9"], "IMAGENET1K_V1"),
    (["--student.name", "timm:resnet51"], "resnet50"),
    (["--student.name", "timm:resnet51.a1_in1k"], "resnet50"),
    (["--method.type", "kdd"], "did you mean kd"),
    (["--run.name", "--data.batch", "3"], "--run.name needs a value"),
    ([], "say what to train"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_found_before_torch_is_imported(tmp_path: Path, words: list[str], said: str) -> None:
    code = (
        "import sys; from fastanc.cli import main; code = main(['train', *sys.argv[1:]]);"
        "print(code, sorted({'torch', 'torchvision', 'timm', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip() == "2 []", done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fastanc: ")
    assert said in line


def test_the_folder_of_a_finished_run_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "student.safetensors").touch()
    teacher = ["--teacher.weights", str(tmp_path), "--teacher.recipe", "null"]
    config = parse(["--recipe", "digits_anc", "--student.weights", str(tmp_path), *teacher])
    groups = {name: getattr(config, name) for name in ("run", "data", "teacher", "student", "method")}
    early.check(groups)
    (tmp_path / "student.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.weights: there is no file .*student\.safetensors"):
        early.check(groups)


def test_a_libraries_names_are_read_from_its_source_as_it_knows_them_itself() -> None:
    torchvision = pytest.importorskip("torchvision")
    assert set(_names("torchvision")) == set(torchvision.models.list_models(module=torchvision.models))
    for name in ("resnet50", "vit_b_16", "googlenet", "maxvit_t"):
        for tag in torchvision.models.get_model_weights(name).__members__:
            check_name(f"torchvision:{name}@{tag}")
    timm = pytest.importorskip("timm")
    assert set(timm.list_models()) <= set(_names("timm"))
    assert all(timm.is_model(name) for name in _names("timm"))


def test_the_sets_that_are_known_early_are_the_catalogues() -> None:
    listed = {line.split()[0] for line in catalogue.describe_names().splitlines()}
    assert set(dataset_names.KNOWN) <= listed
    assert {"digits", *catalogue._ARRAYS, *catalogue._TREES} == set(dataset_names.KNOWN)


# ---- help and the words of the command


def test_help_tells_every_field_and_imports_no_torch() -> None:
    code = "import sys; from fastanc.train import main as m; print(m(sys.argv[1:]), 'torch' in sys.modules)"
    for words in (["--help"], ["-h"], ["--help", "data"], ["--help", "method", "kd"], ["--help", "cache"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600
        )
        assert done.stdout.strip().endswith("0 False"), done.stderr
    overview = manual(["--help"])
    for one in dataclasses.fields(Config):
        assert one.name in overview
        owners = (
            [one.default_factory] if one.name != "method" else map(Method.get_choice_class, own_methods())
        )
        for owner in owners:
            assert all(entry.says for entry in entries(owner, one.name)), owner  # type: ignore[arg-type]
    page = manual(["--help", "data"])
    assert "--data.batch: a whole number, from 1 to 1048576; default 64" in page
    assert "Images per step over all processes." in page
    assert "--method.temperature" in manual(["--help", "kd"])
    assert "--teacher.cache_dir" in manual(["--help", "cache"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help=run", "--run.name: text"),
        ("--help optimizer=", "--optimizer.lr: a number"),
        ("--help --data.batch 64", "--data.batch: a whole number"),
        ("--help data optimizer", "--optimizer.lr: a number"),
        ("--help=method kd", "--method.temperature: a number"),
        ("--help method.type", "attention_transfer"),
        ("--help method.kd", "--method.temperature: a number"),
        ("--help method.dkd", "--method.beta: a number"),
        ("--help method.temperature", "--method.type nkd"),
        ("--help --recipe digits_anc", "usage: fastanc train"),
        ("--help=", "usage: fastanc train"),
        ("--help bacth", "did you mean batch?"),
        ("--help data xyz", "knows no 'xyz': take a group (run, data"),
        ("--help method kdd", "knows no method 'kdd': did you mean kd?"),
    ],
)
def test_help_is_given_or_says_what_there_is(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    code = command(["train", *words.split()])
    out, err = capsys.readouterr()
    assert said in (err if code else out)
    assert code == (2 if "knows no" in said or "did you mean" in said else 0)
    assert err.count("\n") == bool(code)


@pytest.mark.parametrize("word", ["--version", "version"])
def test_the_version_is_said(capsys: pytest.CaptureFixture[str], word: str) -> None:
    with suppress(SystemExit):
        command([word])
    assert capsys.readouterr().out == f"fastanc {version('fastanc')}\n"


def options_of(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield (the words of a command, an option of it) of every command there is."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options_of(inner, (*words, name))
        else:
            yield words, action


def test_every_number_of_every_command_has_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = 0
    for words, option in options_of(_parser()):
        if option.type in (None, Path, local_path):
            continue
        numbers += 1
        for value in ("nan", "inf", "1e400", "-1", "9" * 20, "many", ""):
            with pytest.raises(SystemExit) as ended:
                command([*words, f"{option.option_strings[0]}={value}"])
            (line,) = capsys.readouterr().err.splitlines()
            assert ended.value.code == 2
            assert line.startswith(f"fastanc: {option.option_strings[0]}"), line
    assert numbers >= 19


def test_an_option_given_twice_is_said_and_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--name", "a", "--run.name", "b", "--data.batch", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "fastanc: --run.name is given 2 times: the last one counts"
    assert "data.batch is '0'" in said[1]
    assert parse(["--name", "a", "--run.name", "b"]).run.name == "b"


def test_no_option_is_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["report", ".", "--ou", "x.html"])
    assert "--ou" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["networks", "methods", "datasets"])
def test_the_lists_of_names_take_a_plugin(tmp_path: Path, what: str) -> None:
    (tmp_path / "more.py").write_text(
        "import fastanc, torch\nfrom dataclasses import dataclass\n"
        "@fastanc.register_network('listed-network')\ndef net(num_classes):\n    return torch.nn.Flatten()\n"
        "@fastanc.register_dataset('listed-set')\ndef data(split, root):\n    'Mine.'\n"
        "@fastanc.register_method('listed-method')\n@dataclass(frozen=True, kw_only=True)\n"
        "class Listed(fastanc.Method):\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fastanc", what, "--plugin", "more.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "listed-" in done.stdout
