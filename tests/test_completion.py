"""`fastanc completion`: what a real bash offers after it has read the script."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fastanc.cli import main
from fastanc.config import GROUPS, Config
from fastanc.parsing import method_names, recipe_names

pytest.importorskip("shtab", reason="it writes what a shell reads")

ASK = """
source "$1"; shift
words=("$@"); COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1))
_shtab_fastanc
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    file = tmp_path_factory.mktemp("completion") / "script"
    made = subprocess.run(
        [sys.executable, "-m", "fastanc", "completion", "bash"], capture_output=True, text=True, check=True
    )
    file.write_text(made.stdout)

    def offers(*words: str) -> list[str]:
        asked = [bash, "-c", ASK, "bash", str(file), "fastanc", *words]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()

    return offers


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prof"], ["profile"]),
        (["train", "--data.mix", ""], ["none", "mixup", "cutmix", "both"]),
        (["train", "--data.flip", "t"], ["true"]),
        (["train", "--method.type", ""], list(method_names())),
        (["train", "--recipe", ""], list(recipe_names())),
        (["cache", "build", "--run.prec"], ["--run.precision"]),
        (["study", "--teacher.cache", "f"], ["fill"]),
        (["report", "--c"], ["--csv"]),
        (["report", "--data."], []),  # it takes no fields
    ],
)
def test_a_shell_is_offered(offered, words: list[str], expected: list[str]) -> None:
    assert sorted(offered(*words)) == sorted(expected)


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "method"])
def test_every_field_of_a_group_is_offered(offered, group: str) -> None:
    owner = next(one for one in fields(Config) if one.name == group).default_factory
    assert {f"--{group}.{one.name}" for one in fields(owner)} <= set(offered("train", f"--{group}."))


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_the_fields_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "optimizer.layer_decay" in said
    assert "teacher.cache" in said


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'fastanc[completion]'" in capsys.readouterr().err


def test_the_script_does_not_need_the_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert str(Path(__file__).parents[1]) not in capsys.readouterr().out
