"""How commands end: one sentence and the right exit code, whatever went wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastanc import cli, commands, errors
from fastanc.errors import Interrupted, OutOfMemory, command, explained, memory_of, sentence
from fastanc.pipelines import places
from support.tiny_run import LENETS, as_words


def fails(error: BaseException) -> Callable[..., None]:
    def job(*args: object, **kwargs: object) -> None:
        raise error

    return job


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return the one sentence that the last command said."""

    def read() -> str:
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("fastanc: ")]
        return line.removeprefix("fastanc: ")

    return read


# ---- codes


def test_every_end_has_its_code_and_one_sentence(said: Callable[[], str]) -> None:
    assert command(lambda: None) == 0
    assert command(lambda: 1) == 1
    assert command(fails(ValueError("mend it"))) == 2
    assert said() == "mend it"
    assert command(fails(ModuleNotFoundError("pip install it"))) == 2
    assert said() == "pip install it"
    assert command(fails(Interrupted("saved")), "go on so") == os.EX_TEMPFAIL == 75
    assert said() == "saved; go on so"
    assert command(fails(KeyboardInterrupt()), "go on so") == 130
    assert said() == "interrupted; go on so"


def test_a_bug_and_a_debugged_mistake_are_raised(
    monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    with pytest.raises(TypeError):
        command(fails(TypeError("a bug")))
    monkeypatch.setenv("FASTANC_DEBUG", "1")
    with pytest.raises(ValueError, match="mend it"):
        command(fails(ValueError("mend it")))
    assert command(fails(Interrupted("saved"))) == 75
    assert said().startswith("saved; ")
    assert command(fails(KeyboardInterrupt())) == 130
    assert said().startswith("interrupted; ")


# ---- the system's errors


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "a/b: No space left on device: free some space there, or choose another folder"),
        (errno.EROFS, "a/b: Read-only file system: choose a file or folder that you have the right to"),
        (errno.ENOENT, "a/b: No such file or directory: correct the path"),
        (errno.ENOTDIR, "a/b: Not a directory: something else has that name, choose another"),
        (errno.EMFILE, "a/b: Too many open files: raise the limit of open files (ulimit -n)"),
        (errno.EIO, "a/b: Input/output error: look at the disk"),
        (errno.EPIPE, "a/b: Broken pipe"),
        (errno.ENOMEM, "the host ran out of memory: "),
    ],
)
def test_an_errno_becomes_a_sentence(number: int, words: str) -> None:
    assert words in sentence(OSError(number, os.strerror(number), "a/b"))
    assert "None" not in sentence(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ["no space is left for runs/x", "--run.resume latest", "another --run.out"]),
        (errno.EROFS, ["runs/x cannot be written (Read-only file system)", "another --run.out"]),
        (errno.ENOTDIR, ["runs/x cannot be made", "runs/x/a is in the way", "--run.name"]),
        (errno.EIO, ["runs/x/a cannot be read or written (Input/output error)", "another --run.out"]),
    ],
)
def test_an_error_in_the_runs_folder_names_it_and_what_to_do(number: int, words: list[str]) -> None:
    with pytest.raises(OSError) as told, explained(batch=8, image_px=32, folder=Path("runs/x")):
        raise OSError(number, os.strerror(number), "runs/x/a")
    for word in words:
        assert word in sentence(told.value)


def test_other_errors_pass_unchanged() -> None:
    for error in (
        OSError(errno.ENOSPC, "full", "elsewhere/a"),
        OSError(errno.ENOSPC, "full"),
        FileNotFoundError("a sentence of ours"),
        RuntimeError("something else"),
        Interrupted("saved"),
        KeyError("a bug"),
    ):
        with pytest.raises(type(error)) as same, explained(batch=8, image_px=32, folder=Path("runs/x")):
            raise error
        assert same.value is error


def test_a_file_where_the_runs_should_be_is_one_sentence(tmp_path: Path, said: Callable[[], str]) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    (tmp_path / "runs").touch()
    words = as_words({**LENETS, "run.max_steps": "1", "run.out": str(tmp_path / "runs"), "run.name": "x"})
    assert cli.main(["train", *words]) == 2
    assert f"{tmp_path / 'runs' / 'x'} cannot be made" in (sentence := said())
    assert "choose another --run.out" in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ("mount -t tmpfs -o size=16k none {0}", "no space is left for {0}/x"),
        ("mount -t tmpfs -o ro none {0}", "{0}/x cannot be written"),
    ],
)
def test_a_full_or_read_only_disk_is_one_sentence(tmp_path: Path, mount: str, words: str) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    runs = tmp_path / "runs"
    runs.mkdir()
    fields = {**LENETS, "run.max_steps": "600", "run.log_every": "1", "data.batch": "8", "run.name": "x"}
    command = [sys.executable, "-m", "fastanc.cli", "train", *as_words({**fields, "run.out": str(runs)})]
    script = f"{mount.format(runs)}; exec {' '.join(command)}"
    done = subprocess.run(["unshare", "-Urm", "sh", "-ec", script], capture_output=True, text=True)
    if any(word in done.stderr for word in ("unshare", "mount:")):
        pytest.skip(f"this system lets no test mount: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("fastanc: ")]
    assert words.format(runs) in line


def test_no_home_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTANC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fails(RuntimeError("Could not determine home directory.")))
    with pytest.raises(ValueError, match="no home folder.*: set FASTANC_CACHE to a folder"):
        places.cache_dir()


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"file/cache/digits cannot be made \(.*\): set FASTANC_CACHE"):
        places.make_cache_folder("digits")


# ---- memory


def test_which_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as on_host:
        torch.empty(2**46)
    assert memory_of(on_host.value) == memory_of(MemoryError()) == "host"
    assert memory_of(torch.OutOfMemoryError("Tried to allocate 2 GiB.")) == "device"
    assert memory_of(RuntimeError("CUDA error: out of memory")) == "device"
    assert memory_of(RuntimeError("something else")) is None
    assert memory_of(ValueError("out of memory")) is None
    assert memory_of(OutOfMemory("the device ran out of memory")) is None


def test_out_of_memory_names_batch_and_size() -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")
    with pytest.raises(OutOfMemory) as told, explained(batch=96, image_px=32):
        raise full
    text = sentence(told.value)
    for word in ("the device ran out of memory", "data.batch 96", "at 32 px", "Tried to allocate 2 GiB."):
        assert word in text
    assert "\n" not in text
    assert told.value.__cause__ is full
    with pytest.raises(OutOfMemory, match=r"the host .* 8 .*: MemoryError"), explained(batch=8, image_px=32):
        raise MemoryError


@pytest.mark.parametrize("job", ["train", "study", "demo", "cache build"])
def test_every_job_that_runs_a_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], job: str
) -> None:
    full = fails(torch.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr("fastanc.training.assemble.make_accelerator", full)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "{title: t, recipe: digits_anc, grid: [{a: {}}], set: {data.batch: 64}}"
    )
    words = {
        "study": ["small.yaml", "--teacher.weights", "random"],
        "demo": [],
        "train": ["--data.batch", "64", "--teacher.weights", "random"],
        "cache build": ["--data.batch", "64"],
    }
    assert cli.main([*job.split(), *words[job]]) == 2
    assert "the device ran out of memory with data.batch 64 (over all processes) at 32 px" in said()


# ---- the command


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "fastanc.cli", "export", "nowhere", "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == errors.MISTAKE
    assert done.stderr == "fastanc: nowhere has no student.safetensors: name the folder of a finished run\n"


@pytest.mark.parametrize(("job", "again"), [("recipes", "to go on"), ("demo", "starts it over")])
def test_ctrl_c_says_how_a_job_goes_on(
    monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], job: str, again: str
) -> None:
    for name in ("names", "demo"):
        monkeypatch.setattr(commands, name, fails(KeyboardInterrupt()))
    assert cli.main([job]) == 130
    assert again in said()


# ---- a user's own code

PLUGIN = """
import sys
from dataclasses import dataclass
import fastanc, torch

@fastanc.register_dataset("faulty-set")
def data(split, root):
    return {}[split]

@fastanc.register_network("faulty-network")
def network(num_classes):
    sys.exit()

@fastanc.register_method("faulty-method")
@dataclass(frozen=True, kw_only=True)
class Faulty(fastanc.Method):
    needs = frozenset({"logits"})
    sign: float = 1.0
    def __post_init__(self):
        super().__post_init__()
        assert self.sign > 0
    def networks(self, student, teacher):
        return teacher.nothing
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "mine.py"
    file.write_text(PLUGIN)
    return file


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"data.name": "faulty-set"}, "line 8, in data: KeyError: 'val': mend it"),
        ({"student.name": "faulty-network"}, "line 12, in network: SystemExit: mend it"),
        ({"method.type": "faulty-method"}, "line 23, in networks: AttributeError: 'TeacherSpec'"),
        (
            {"method.type": "faulty-method", "method.sign": "-1"},
            "line 21, in __post_init__: AssertionError",
        ),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_error_of_a_users_code_is_one_sentence_with_its_line(
    tmp_path: Path,
    plugin: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
    chosen: dict[str, str],
    told: str,
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    fields = {**LENETS, "run.out": str(tmp_path), "run.plugin": str(plugin), **chosen}
    line = ["train", *as_words(fields)]
    assert cli.main(line) == 2
    assert f"{plugin}, {told}" in said()
    monkeypatch.setenv("FASTANC_DEBUG", "1")
    with pytest.raises((LookupError, SystemExit, AttributeError, AssertionError)):
        cli.main(line)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sys.exit()", "SystemExit, "),
        ("raise SystemExit('no GPU')", "SystemExit: no GPU, "),
        ("{}['a']", "KeyError: 'a', "),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first, "),
    ],
)
@pytest.mark.parametrize("job", ["train", "networks", "export"])
def test_a_plugin_that_cannot_be_imported_is_one_sentence(
    tmp_path: Path, said: Callable[[], str], job: str, code: str, told: str
) -> None:
    (tmp_path / "mine.py").write_text(f"import sys\n{code}\n")
    words = {"export": [str(tmp_path), str(tmp_path / "out")]}.get(job, [])
    assert cli.main([job, *words, "--plugin", str(tmp_path / "mine.py")]) == 2
    assert f"mine.py cannot be imported ({told}{tmp_path / 'mine.py'}, line 2, in <module>)" in said()
