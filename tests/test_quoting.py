"""A wrong value of three thousand letters does not bury the sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastanc.cli import main
from fastanc.errors import say_repeated
from fastanc.parsing import configure, parse
from fastanc.quoting import brief, counted, cut, shown


def test_one_is_no_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 2, 1200)] == ["0 steps", "1 step", "2 steps", "1,200 steps"]
    assert [counted(n, "epoch") for n in (0.5, 1.0, 2.5)] == ["0.5 epochs", "1 epoch", "2.5 epochs"]
    assert [counted(n, "pass") for n in (1, 3)] == ["1 pass", "3 passes"]


LONG = "x" * 3000
WORDS = "two words " * 300
TRAIN = ["train", "--recipe", "digits_anc"]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return what a command says where it is wrong, without its first word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTANC_DEBUG", raising=False)

    def run(args: list[str]) -> str:
        try:
            assert main(args) == 2
        except SystemExit as ended:
            assert ended.code == 2  # noqa: PT017
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("fastanc: ")

    return run


@pytest.mark.parametrize(
    "value", [LONG, WORDS, "/" + LONG, "é" * 1500 + "/" + LONG], ids=["x", "words", "path", "é"]
)
@pytest.mark.parametrize(
    ("args", "names"),
    [
        ([*TRAIN, "--student.name={}"], "student.name: "),
        ([*TRAIN, "--student.name=torchvision:{}"], "student.name: "),
        ([*TRAIN, "--student.name=torchvision:resnet18@{}"], "student.name: "),
        ([*TRAIN, "--teacher.name={}"], "teacher.name: "),
        ([*TRAIN, "--data.name={}"], ""),
        ([*TRAIN, "--data.name=cifar10", "--data.root={}"], "data.root: "),
        ([*TRAIN, "--data.looks={}"], "data.looks "),
        ([*TRAIN, "--method.type={}"], "method.type "),
        ([*TRAIN, "--schedule.name={}"], "schedule.name is "),
        ([*TRAIN, "--run.plugin={}"], "run.plugin: "),
        ([*TRAIN, "--run.resume={}"], ""),
        ([*TRAIN, "--student.weights={}"], "student.weights: "),
        ([*TRAIN, "--{}=3"], "there is no field "),
        ([*TRAIN, "--student.{}=3"], "there is no field student."),
        (["train", "--recipe={}"], ""),
        (["train", "{}"], ""),
        (["train", "--help", "{}"], "--help knows no "),
        (["study", "{}"], ""),
        (["cache", "info", "{}"], ""),
        (["cache", "build", "--students", "{}"], "--students is "),
        (["export", "{}", "out"], ""),
        (["{}"], "COMMAND: invalid choice: "),
    ],
)
def test_no_command_prints_it_whole(said, args, names, value):
    sentence = said([word.replace("{}", value) for word in args])
    assert sentence.startswith(names)
    assert len(sentence) < 1300
    assert value not in sentence


def test_neither_do_files(said, tmp_path):
    for text in (
        f"'{WORDS}': 3",
        f"student: {{'{WORDS}': 3}}",
        f"student: {{name: {WORDS}}}",
        f"student: {WORDS}",
        f"method: {WORDS}",
        f"method: {{type: {WORDS}}}",
        f"a: *{LONG}",
    ):
        (tmp_path / "own.yaml").write_text(text)
        assert len(said(["train", "--recipe", "own.yaml"])) < 700
    (tmp_path / "own.py").write_text(f"raise ValueError('{LONG}')\n")
    assert "own.py, line 1" in (sentence := said([*TRAIN, "--plugin", "own.py"]))
    assert len(sentence) < 1000


def test_python_is_told_no_more():
    for fields in ({"student.name": 3.5, "data.mix": WORDS}, {"optimizer.name": LONG}, {WORDS: 3}):
        with pytest.raises(ValueError, match=r"it takes|no field") as caught:
            configure("digits_anc", fields)
        assert len(str(caught.value)) < 700
    with pytest.raises(ValueError, match="do not know what to do with 'x+"):
        parse([LONG])


def test_what_is_said_twice_is_cut(capsys):
    say_repeated([f"--{LONG}"] * 2)
    assert len(capsys.readouterr().err) < 200


def test_what_is_not_too_long_stays_as_it_is():
    path = "/" + "/".join(["folder of a name"] * 40) + "/" + "n" * 255
    for text in (
        f"{path}: correct the path",
        "the networks' heads differ and " + "so do these words " * 40 + "of the teachers' heads",
        "one's own " + "word " * 100 + "isn't cut",
        f"'{'a' * 298}' is unknown",
        "",
    ):
        assert brief(text) == text
    assert brief(f"a '{LONG}' b") == f"a '{'x' * 199}...{'x' * 59}' b"
    assert brief(f'there is no "{WORDS}": take another').endswith('words ": take another')
    assert brief(f"first {WORDS} last\nsecond") == f"first {WORDS[:594]}...{WORDS[-595:]} last\nsecond"
    assert shown(None) == "null"
    assert (shown("a"), shown(3.0), cut("b" * 80)) == ("'a'", "3.0", "b" * 80)
    assert len(cut(LONG)) == len(shown([1] * 3000)) == 80
