"""What is written is there whole or not at all: real kills, full disks, links, and what killed writers leave."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fastanc import files
from fastanc.models.weights import read_weights, write_safetensors
from fastanc.training.checkpoint import Checkpoints, load
from fastanc.training.folder import SUMMARY, Owner, finish_folder, open_folder, read_summary
from support.processes import forked


def killed(work: Callable[[], object], at_rename: int = 1) -> None:
    """Do work in a child that is killed (SIGKILL) where it would rename for the n-th time."""
    child = os.fork()
    if not child:
        seen = iter(range(1, 99))
        rename = os.replace

        def replace(*args: str) -> None:
            if next(seen) == at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args)

        try:
            os.replace = replace  # type: ignore[assignment]
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the mechanism


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_text(path, "one: ä")
    with files.written(path) as file:
        file.write(b"two")
        assert path.read_text(encoding="utf-8") == "one: ä"
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "a", tmp_path / "b"
    files.write_text(path, "one")
    folder.mkdir()
    (folder / "kept").touch()

    def fail_in_file() -> None:
        with files.written(path) as file:
            file.write(b"two")
            raise KeyError

    def fail_in_folder() -> None:
        with files.whole(folder) as part:
            part.mkdir()
            (part / "half").touch()
            raise KeyError

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(KeyError):
            fail()
    assert path.read_text() == "one"
    assert names(folder) == ["kept"]
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with files.whole(tmp_path / "a") as part:
            part.mkdir()
            (part / content).touch()
        assert names(tmp_path / "a") == [content]
    assert names(tmp_path) == ["a"]


def test_its_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "")
        write_safetensors(tmp_path / "b", {"w": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")}
    assert modes == {"a": 0o640, "b": 0o640}


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for text in ("one", "two"):
        files.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == text
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    files.write_text(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == b"through"
    assert names(tmp_path) == ["link", "pipe", "there"]


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as gone:
        files.write_text(tmp_path / "gone" / "a", "")
    assert gone.value.filename == str(tmp_path / "gone" / "a")
    with pytest.raises(OSError) as full, files.written(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError) as ours, files.written(tmp_path / "a"):
        raise OSError("a sentence of ours")
    assert str(ours.value) == "a sentence of ours"
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    code = f"""
import resource, signal
from fastanc.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_bytes({str(tmp_path / "a")!r}, bytes(100_000))
except OSError as error:
    print(error.filename)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{tmp_path / 'a'}\n"
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_sweeping_takes_only_what_killed_writers_left(tmp_path: Path) -> None:
    old = time.time() - 2 * files.HOUR_S
    mine = [files.scratch(tmp_path / name) for name in ("a", "a", "b")]
    for path in mine:
        path.mkdir()
        (path / "part").touch()
    for path in (mine[0], mine[0] / "part"):
        os.utime(path, (old, old))
    os.utime(mine[2], (old, old))  # its writer is at work inside
    others = ["a", ".a.tmp", "a.0f.tmp", ".a.0f.tmp.json", ".hidden"]
    for name in others:
        (tmp_path / name).touch()
    assert files.sweep(tmp_path / "nowhere") == []
    assert files.sweep(tmp_path, older_than_s=files.HOUR_S) == [mine[0]]
    assert files.sweep(tmp_path, "b") == [mine[2]]
    assert files.sweep(tmp_path) == [mine[1]]
    assert names(tmp_path) == sorted(others)


def test_a_workspace_is_gone_afterwards(tmp_path: Path) -> None:
    def fail() -> None:
        with files.workspace(tmp_path, "x") as inside:
            (inside / "kept").write_text("whole")
            (inside / "lost").touch()
            files.put(inside / "kept", tmp_path / "kept")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path) == ["kept"]


# ---- killed between writing and renaming


def test_a_killed_summary_is_none_and_the_old_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed(lambda: open_folder(folder, "name: first\n", start=0, total=9))
    open_folder(folder, "name: first\n", start=0, total=9)
    assert names(folder) == ["config.yaml"]
    killed(lambda: finish_folder(folder, {"val": 1}))
    assert read_summary(folder) is None
    assert len(names(folder)) == 2
    open_folder(folder, "name: second\n", start=0, total=9)
    finish_folder(folder, {"val": 2})
    killed(lambda: finish_folder(folder, {"val": 3}))
    assert read_summary(folder) == {"val": 2}
    open_folder(folder, "name: third\n", start=9, total=9)
    assert names(folder) == ["config.yaml", SUMMARY]
    open_folder(folder, "name: fourth\n", start=3, total=9)
    assert names(folder) == ["config.yaml"]


def test_one_start_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    made = ["metrics.jsonl", "student.safetensors", "samples.png", "estimators.safetensors", SUMMARY]

    def earlier() -> None:
        for name in (*made, "notes.txt"):  # the last is the user's
            (tmp_path / name).write_text("{}")
        for step in (4, 8, 12):
            (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)

    earlier()
    open_folder(tmp_path, "", start=0, total=9)
    assert names(tmp_path) == ["config.yaml", "notes.txt"]
    earlier()
    open_folder(tmp_path, "", start=8, total=9)
    assert names(tmp_path / "checkpoints") == ["step-00000004", "step-00000008"]
    assert names(tmp_path) == sorted(["checkpoints", "config.yaml", "notes.txt", *made[:-1]])
    earlier()
    open_folder(tmp_path, "", start=8, total=8)  # nothing is left to do: all stays
    assert len(names(tmp_path / "checkpoints")) == 3
    assert (tmp_path / SUMMARY).exists()


# ---- one owner


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    owner = Owner(folder)
    try:
        yield
    finally:
        owner.release()


def test_a_folder_has_one_owner_who_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"

    def owning() -> None:
        with owned(folder):
            forked(lambda: time.sleep(600))  # a worker that outlives a kill holds nothing
            (tmp_path / "owned").touch()
            time.sleep(600)

    child, deadline = forked(owning), time.monotonic() + 600
    while not (tmp_path / "owned").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    who = rf"x belongs to a run .* \(host {socket.gethostname()} pid {child} .* another --run.name"
    for _ in range(2):
        with pytest.raises(ValueError, match=who), owned(folder):
            pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(folder) == [".owner"]  # a kill leaves the file, and no lock
    with owned(folder):
        assert f"pid {os.getpid()} " in (folder / ".owner").read_text()
        with pytest.raises(ValueError, match="belongs to a run"), owned(folder):
            pass
        (folder / "made").touch()
    assert names(folder) == ["made"]


def test_of_many_that_come_at_once_one_at_a_time_is_the_owner(tmp_path: Path) -> None:
    folder, counter = tmp_path / "x", tmp_path / "count"
    counter.write_text("0")

    def counting() -> None:
        done = 0
        while done < 30:
            try:
                with owned(folder):
                    count = int(counter.read_text())
                    time.sleep(0.0005)
                    counter.write_text(str(count + 1))
                    done += 1
            except ValueError:
                time.sleep(0.001)

    children = [forked(counting) for _ in range(5)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    assert counter.read_text() == "150"


def test_where_a_file_system_has_no_locks_the_name_must_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuses)
    folder = tmp_path / "x"
    folder.mkdir()
    for name, pid in (("elsewhere", 1), (socket.gethostname(), os.getppid())):
        (folder / ".owner").write_text(f"host {name} pid {pid} since ever\n")
        with pytest.raises(ValueError, match=f"host {name} pid {pid}"), owned(folder):
            pass
    dead = forked(lambda: None)
    os.waitpid(dead, 0)
    (folder / ".owner").write_text(f"host {socket.gethostname()} pid {dead} since ever\n")
    with owned(folder):
        assert f"pid {os.getpid()} " in (folder / ".owner").read_text()


@pytest.mark.parametrize("text", ["", '{"val": {"error_p', "[]", "{}", "\x00" * 20])
def test_a_summary_that_is_cut_off_does_not_count(tmp_path: Path, text: str) -> None:
    (tmp_path / SUMMARY).write_text(text)
    assert read_summary(tmp_path) is None


def test_a_killed_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def save(step: int, value: float) -> None:
        checkpoints = Checkpoints(run / "checkpoints", keep=1)
        checkpoints.save(step, {"w": torch.full((9,), value)}, {"config": {}})
        checkpoints.wait()

    save(1, 1.0)
    killed(lambda: save(2, 2.0))
    path, refused = Checkpoints(run / "checkpoints").latest()
    assert (path.name, refused) == ("step-00000001", [])
    assert load(path)[0]["w"][0] == 1
    open_folder(run, "", start=1, total=9)
    assert names(run / "checkpoints") == ["step-00000001"]
    save(2, 3.0)
    assert load(Checkpoints(run / "checkpoints").latest()[0])[0]["w"][0] == 3
    assert names(run / "checkpoints") == ["step-00000002"]


def test_killed_weights_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write_safetensors(path, {"w": torch.ones(3)}, {"name": "one"})
    killed(lambda: write_safetensors(path, {"w": torch.zeros(3)}, {"name": "two"}))
    state, metadata, *_ = read_weights(path)
    assert metadata == {"name": "one"}
    assert torch.equal(state["w"], torch.ones(3))
    assert len(names(tmp_path)) == 2
    open_folder(tmp_path, "", start=9, total=9)
    assert names(tmp_path) == ["config.yaml", "student.safetensors"]


# ---- weights, byte for byte

_WRITE = """
import sys, torch
from fastanc.models.weights import write_safetensors
kinds = [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]
state = {f"layer{k}.w": torch.arange(k + 1).to(kinds[k % 5]) for k in range(12)}
write_safetensors(sys.argv[1], state, {f"key{k}": "ä" * k for k in range(12)})
"""


def test_equal_weights_are_equal_bytes_in_every_process(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", _WRITE, path], env=env, check=True)
    data = paths[0].read_bytes()
    assert data == paths[1].read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    state, metadata, *_ = read_weights(paths[0])
    assert metadata == {f"key{k}": "ä" * k for k in range(12)}
    kinds = [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]
    assert len(state) == 12
    for k in range(12):
        assert torch.equal(state[f"layer{k}.w"], torch.arange(k + 1).to(kinds[k % 5]))


def test_a_folder_made_for_a_run_that_wrote_nothing_goes_with_it(tmp_path: Path) -> None:
    with owned(tmp_path / "runs" / "x"):
        assert names(tmp_path / "runs" / "x") == [".owner"]
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with owned(tmp_path / "runs" / "mine"), owned(tmp_path / "runs" / "written"):
        (tmp_path / "runs" / "written" / "config.yaml").touch()
    assert names(tmp_path / "runs") == ["mine", "written"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_where_no_folder_can_be_made_it_is_said_at_once() -> None:
    with pytest.raises(FileNotFoundError, match="/proc/x"), owned(Path("/proc/x/y")):
        pass


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to("photos")
    for name in ("photos", "link"):
        with pytest.raises(IsADirectoryError, match="photos"):
            files.write_text(tmp_path / name, "a page")
    assert names(tmp_path / "photos") == ["1.jpg"]
    assert names(tmp_path) == ["link", "photos"]
