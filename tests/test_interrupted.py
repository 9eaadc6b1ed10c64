"""A run that is interrupted, politely or with kill -9, ends with the bits of the one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastanc.training import run
from fastanc.training.checkpoint import Checkpoints, load
from fastanc.training.metrics import read_metrics

BASE = [
    *("--data.batch", "64", "--schedule.epochs", "3", "--run.log_every", "1", "--run.eval_every", "0"),
    *("--teacher.weights", "random", "--teacher.name", "resnet8", "--data.views", "2"),
    *("--teacher.rows", "fp32", "--data.image_px", "16", "--data.resize_px", "16"),
    *(
        "--run.max_steps",
        "50",
        "--run.ema",
        "0.9",
    ),  # two epochs of 22 steps fill the cache, the rest reads it
]

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


# Real processes with real signals; forked from a server that has imported everything once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["fastanc.train", "fastanc.jobs.demo", "sklearn.datasets", "torchvision"])


def _train(args: list[str], said: Path) -> None:
    sys.stderr = said.open("w")
    torch.set_num_threads(1)
    from fastanc.train import main

    sys.exit(main(args))


def start(folder: Path, name: str, *args: str) -> Process:
    places = ["--out", str(folder / "runs"), "--teacher.cache_dir", str(folder / f"cache-{name}")]
    process = FORKS.Process(target=_train, args=([*BASE, *places, "--name", name, *args], folder / "said"))
    process.start()
    return process


def ended(process: Process, folder: Path, code: int = 0) -> str:
    """Wait for a run that is expected to end with this code and return what it said."""
    process.join(timeout=1800)
    said = (folder / "said").read_text()
    assert process.exitcode == code, said[-3000:]
    return said


def wait_for_step(run: Process, folder: Path, name: str, step: int) -> None:
    log = folder / "runs" / name / "metrics.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert run.is_alive(), (folder / "said").read_text()[-3000:]
        time.sleep(0.02)


def steps_made(folder: Path, name: str) -> int:
    lines = read_metrics(folder / "runs" / name / "metrics.jsonl")
    return sum(line["kind"] == "train" for line in lines)


def assert_same_students(folder: Path, *names: str) -> None:
    first, *others = (load_file(folder / "runs" / name / "student.safetensors") for name in names)
    for other in others:
        assert first.keys() == other.keys()
        for key in first:
            assert torch.equal(first[key], other[key]), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the untouched run `whole`."""
    path = tmp_path_factory.mktemp("interrupted")
    ended(start(path, "whole"), path)
    return path


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_asked_to_stop_it_saves_and_resumes_equal(folder: Path, number: signal.Signals) -> None:
    name = number.name
    run = start(folder, name)
    wait_for_step(run, folder, name, 20)
    os.kill(run.pid, number)
    asked, made = time.time(), steps_made(folder, name)
    said = [line for line in ended(run, folder, os.EX_TEMPFAIL).splitlines() if line.startswith("fastanc:")]
    print(f"ended {time.time() - asked:.1f} s after it was asked to")
    assert steps_made(folder, name) <= made + 1  # the step under way
    assert len(said) == 1
    assert "--run.resume latest" in said[0]
    assert Checkpoints(folder / "runs" / name / "checkpoints").latest()[1] == []
    ended(start(folder, name, "--resume", "latest"), folder)
    assert_same_students(folder, "whole", name)


def _train_killed(name: str, args: list[str], said: Path) -> None:
    """Train until a file or folder of that name would appear; die there."""
    rename = os.replace

    def replace(part: Path, path: Path) -> None:
        if Path(path).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(part, path)

    os.replace = replace
    _train(args, said)


@pytest.mark.parametrize("name", ["config.yaml", "step-00000044", "student.safetensors", "summary.json"])
def test_killed_where_a_file_would_appear_it_goes_on(folder: Path, name: str) -> None:
    run = folder / "runs" / name
    places = ["--out", str(run.parent), "--teacher.cache_dir", str(folder / f"cache-{name}"), "--name", name]
    process = FORKS.Process(target=_train_killed, args=(name, [*BASE, *places], folder / "said"))
    process.start()
    ended(process, folder, -signal.SIGKILL)
    assert [path.name for path in run.rglob(name)] == []
    assert len([*run.rglob(f".{name}.*.tmp")]) == 1
    ended(start(folder, name, "--resume", "latest"), folder)
    assert [*run.rglob("*.tmp")] == []
    assert (run / "summary.json").is_file()
    assert_same_students(folder, "whole", name)


STUCK_S = 600


def _train_stuck(place: str, args: list[str], said: Path) -> None:
    """Train with a step, or a disk, that never ends once the run has been asked to stop."""

    def stuck(*args: object, **kwargs: object) -> None:
        (said.parent / "stuck").touch()
        time.sleep(STUCK_S)

    if place == "step":
        run.Run.save = stuck  # type: ignore[method-assign]
    else:
        torch.save = stuck
    _train(args, said)


@pytest.mark.parametrize("place", ["step", "disk"])
def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, place: str) -> None:
    places = ["--out", str(tmp_path / "runs"), "--teacher.cache_dir", str(tmp_path / "cache"), "--name", "x"]
    args = [*BASE, *places, "--run.checkpoint_every", "1000"]
    process = FORKS.Process(target=_train_stuck, args=(place, args, tmp_path / "said"))
    process.start()
    wait_for_step(process, tmp_path, "x", 3)
    os.kill(process.pid, signal.SIGINT)
    deadline = time.time() + 60
    while not (tmp_path / "stuck").exists():
        assert time.time() < deadline
        time.sleep(0.02)
    asked = time.time()
    os.kill(process.pid, signal.SIGINT)
    said = ended(process, tmp_path, 130)
    assert time.time() - asked < STUCK_S / 2  # it did not wait for what is stuck
    assert [line for line in said.splitlines() if line.startswith("fastanc:")] == [
        "fastanc: interrupted; the same command with --run.resume latest goes on"
    ]
    assert "Traceback" not in said


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_equal(folder: Path, rounds: int) -> None:
    name, moments = f"killed-{rounds}", random.Random(rounds)
    options = ("--run.checkpoint_every", "7")
    last = 0
    for step in sorted(moments.choices(range(2, 46), k=rounds)):
        run = start(folder, name, *options, "--resume", "latest")
        wait_for_step(run, folder, name, step)
        time.sleep(
            moments.random() * (0.05 if step > last else 4)
        )  # or anywhere in its start and first steps
        last = step
        run.kill()
        run.join()
    ended(start(folder, name, *options, "--resume", "latest"), folder)
    assert_same_students(folder, "whole", name)


def test_nothing_of_an_earlier_run_outlives_one_that_starts_over(folder: Path) -> None:
    """Not even where that one is killed before its first checkpoint."""
    shutil.copytree(folder / "runs" / "whole", folder / "runs" / "over")
    options = ("--run.seed", "5", "--run.checkpoint_every", "1000")
    run = start(folder, "over", *options, "--resume", "anew")
    log = folder / "runs" / "over" / "metrics.jsonl"
    while not log.exists() or (folder / "runs" / "over" / "student.safetensors").exists():
        time.sleep(0.01)  # the earlier one's
    wait_for_step(run, folder, "over", 3)
    run.kill()
    run.join()
    there = {path.name for path in (folder / "runs" / "over").iterdir()}
    assert there == {"config.yaml", "metrics.jsonl", ".owner"}
    ended(start(folder, "over", *options, "--resume", "latest"), folder)
    assert "resumed" not in (folder / "said").read_text()
    ended(start(folder, "five", *options), folder)
    assert_same_students(folder, "five", "over")
    with pytest.raises(AssertionError):
        assert_same_students(folder, "whole", "over")


def test_what_would_overwrite_or_mix_an_earlier_run_is_refused(folder: Path) -> None:
    whole = folder / "runs" / "whole"
    shutil.copytree(whole, folder / "runs" / "other")
    (mark,) = sorted((whole / "checkpoints").glob("step-*/COMPLETE"))[-1:]
    said = ended(start(folder, "other", "--resume", str(mark.parent)), folder, 2)
    assert "would overwrite: choose another --run.name" in said
    shutil.rmtree(folder / "runs" / "other" / "checkpoints")
    for wish in ("never", "latest"):
        assert "holds a finished run without its checkpoints" in ended(
            start(folder, "other", "--resume", wish), folder, 2
        )
    assert (folder / "runs" / "other" / "student.safetensors").read_bytes() == (
        whole / "student.safetensors"
    ).read_bytes()
    ended(start(folder, "other", "--resume", "anew"), folder)
    assert_same_students(folder, "whole", "other")


def _train_as(rank: int, world: int, port: int, args: list[str], said: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _train(args, said)


# Without BatchNorm and dropout, which see the split of the batch.
PLAIN = [*BASE, "--student.name", "lenet4", "--method.dropout", "0", "--teacher.cache", "off"]
PLAIN += ["--data.image_px", "32", "--data.resize_px", "32", "--run.checkpoint_every", "4"]


def start_on(folder: Path, world: int, name: str, steps: int, *more: str) -> list[Process]:
    """Start training on so many processes, from the last checkpoint if there is one."""
    args = [*PLAIN, *more]
    args += [
        "--out",
        str(folder / "runs"),
        "--name",
        name,
        "--resume",
        "latest",
        "--run.max_steps",
        str(steps),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        FORKS.Process(target=_train_as, args=(rank, world, port, args, folder / f"said-{rank}"))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def train_on(folder: Path, world: int, name: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Train on so many processes to the end and return the student."""
    for rank, process in enumerate(start_on(folder, world, name, steps, *more)):
        process.join(timeout=1800)
        assert process.exitcode == 0, (folder / f"said-{rank}").read_text()[-3000:]
    return load_file(folder / "runs" / name / "student.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_of_two_processes_is_asked_to_stop_and_both_do(tmp_path: Path, number: signal.Signals) -> None:
    train_on(tmp_path, 2, "whole", 24)
    asked, other = start_on(tmp_path, 2, "asked", 24)[::-1]  # the second, which writes nothing
    wait_for_step(asked, tmp_path, "asked", 9)
    os.kill(asked.pid, number)
    began, made = time.time(), steps_made(tmp_path, "asked")
    for process in (asked, other):
        process.join(timeout=1800)
        assert process.exitcode == os.EX_TEMPFAIL
    print(f"ended {time.time() - began:.1f} s after one was asked to")
    assert steps_made(tmp_path, "asked") <= made + 2  # they agree beside the next step
    assert not (tmp_path / "runs" / "asked" / "summary.json").exists()
    train_on(tmp_path, 2, "asked", 24)
    assert "resumed from" in (tmp_path / "said-0").read_text()
    assert_same_students(tmp_path, "whole", "asked")


@pytest.mark.slow
def test_two_processes_go_on_as_one_and_as_four(tmp_path: Path) -> None:
    train_on(tmp_path, 2, "two", 8)
    for other in ("one", "four"):
        shutil.copytree(tmp_path / "runs" / "two", tmp_path / "runs" / other)
    before = load_file(tmp_path / "runs" / "two" / "student.safetensors")
    expected = train_on(tmp_path, 2, "two", 16)
    for name, world in (("one", 1), ("four", 4)):
        found = train_on(tmp_path, world, name, 16)
        for key, weight in expected.items():
            moved = (weight - before[key]).norm()
            assert (found[key] - weight).norm() <= 1e-3 * moved, (name, key)  # rounding, amplified in 8 steps


def launched(folder: Path, *more: str, step: int | None = None) -> subprocess.Popen[bytes]:
    """Start two processes by the launcher, and wait for a step of theirs if one is given."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    cpu2 = Path(__file__).parent.parent / "fastanc" / "recipes" / "launch" / "cpu2.yaml"
    command = [*launch, str(cpu2), "-m", "fastanc.train", *PLAIN, *more]
    with (folder / "said").open("w") as said:
        launcher = subprocess.Popen(command, cwd=folder, stderr=said, stdout=said)
    log = folder / "runs" / "x" / "metrics.jsonl"
    while step is not None and not (log.exists() and f'"step": {step},' in log.read_text()):
        assert launcher.poll() is None, (folder / "said").read_text()[-3000:]
        time.sleep(0.05)
    return launcher


@pytest.mark.slow
def test_ctrl_c_at_the_launcher_saves_the_run(tmp_path: Path) -> None:
    launcher = launched(tmp_path, "--name", "x", step=9)
    launcher.send_signal(signal.SIGINT)  # as from a terminal: the processes are in sessions of their own
    launcher.wait(timeout=1800)
    said = (tmp_path / "said").read_text()
    assert len([line for line in said.splitlines() if line.startswith("fastanc: interrupted after")]) == 2
    latest, refused = Checkpoints(tmp_path / "runs" / "x" / "checkpoints").latest()
    assert refused == []
    for name in ("x", "whole"):
        assert launched(tmp_path, "--name", name, "--resume", "latest").wait(timeout=1800) == 0
        assert (f"resumed from runs/x/checkpoints/{latest.name}" in (tmp_path / "said").read_text()) == (
            name == "x"
        )
    assert_same_students(tmp_path, "whole", "x")


@pytest.mark.slow
def test_a_dead_process_takes_the_others_along(tmp_path: Path) -> None:
    launcher = launched(tmp_path, "--name", "x", step=5)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {pid: dict(v.split("=", 1) for v in _environ(pid) if "=" in v).get("RANK") for pid in workers}
    victim = next(int(pid) for pid, rank in ranks.items() if rank == "1")
    began = time.time()
    os.kill(victim, signal.SIGKILL)
    launcher.wait(timeout=900)  # gloo alone would wait for the dead one for half an hour
    print(f"ended {time.time() - began:.1f} s after a process was killed")
    assert launcher.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "SIGKILL" in (tmp_path / "said").read_text()


def _environ(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "views", [[], ["--data.looks", "trivial", "--data.erase", "0.3", "--data.mix", "both"]]
)
def test_on_two_processes_too_the_cached_student_is_the_online_one(tmp_path: Path, views: list[str]) -> None:
    train_on(tmp_path, 2, "online", 50, *views)
    cache = [*views, "--teacher.cache_dir", str(tmp_path / "cache"), "--teacher.cache"]
    train_on(
        tmp_path, 2, "filling", 50, *cache, "fill"
    )  # two epochs of 22 steps; the rest reads what is there
    asked, other = start_on(tmp_path, 2, "resumed", 50, *cache, "fill")
    wait_for_step(asked, tmp_path, "resumed", 9)
    os.kill(asked.pid, signal.SIGTERM)
    for process in (asked, other):
        process.join(timeout=1800)
    train_on(tmp_path, 2, "resumed", 50, *cache, "fill")
    assert_same_students(tmp_path, "online", "filling", "resumed")


def test_divergence_ends_with_a_sound_checkpoint_named(tmp_path: Path) -> None:
    wild = [
        "--optimizer.lr",
        "1000",
        "--optimizer.momentum",
        "0.999",
        "--schedule.warmup_epochs",
        "0",
        "--teacher.cache",
        "off",
    ]
    wild += ["--run.checkpoint_every", "1", "--run.log_every", "10", "--run.ema", "0"]
    said = ended(start(tmp_path, "wild", *wild), tmp_path, 2).splitlines()[-1]
    assert said.startswith("fastanc:")
    assert "step" in said
    named = re.search(r"the last good checkpoint is (\S+)", said)
    if named is None:  # the very first step may do it
        assert "there is no checkpoint yet" in said
        return
    state, _ = load(Path(named[1]))
    for player in state["players"].values():
        assert all(torch.isfinite(w).all() for w in player["module"].values() if w.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_thirty_times_asked_to_stop_and_started_over_it_ends_equal(tmp_path: Path, world: int) -> None:
    """Any signal at any moment, to any process, now and then a second start or a new beginning."""
    moments, counts = random.Random(world), dict.fromkeys(("kills", "stops", "anew", "second starts"), 0)
    args = [*BASE, "--run.checkpoint_every", "7"]

    def begin(name: str, *more: str) -> list[Process]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = ["--out", str(tmp_path / "runs"), "--teacher.cache_dir", str(tmp_path / f"cache-{name}")]
        words = [*args, *places, "--name", name, *more]
        started = [
            FORKS.Process(target=_train_as, args=(rank, world, port, words, tmp_path / f"said-{rank}"))
            for rank in range(world)
        ]
        for process in started:
            process.start()
        return started

    def finish(processes: list[Process]) -> None:
        for rank, process in enumerate(processes):
            process.join(timeout=1800)
            assert process.exitcode == 0, (tmp_path / f"said-{rank}").read_text()[-3000:]

    finish(begin("whole"))
    for _ in range(30):
        anew = moments.random() < 0.15 or (tmp_path / "runs/x/summary.json").exists()
        counts["anew"] += anew
        processes = begin("x", "--resume", "anew" if anew else "latest")
        before, deadline = steps_made_or_none(tmp_path, "x"), time.monotonic() + 1800
        if moments.random() < 0.7:  # let it come some steps further; else strike anywhere in its start
            while time.monotonic() < deadline and steps_made_or_none(tmp_path, "x") in (before, 0):
                if not all(process.is_alive() for process in processes):
                    break
                time.sleep(0.01)
        time.sleep(moments.random() * 1.5)
        if moments.random() < 0.2 and processes[0].is_alive() and (tmp_path / "runs/x/.owner").exists():
            again = [*args, "--out", str(tmp_path / "runs"), "--name", "x", "--resume", "anew"]
            second = FORKS.Process(target=_train, args=(again, tmp_path / "said-second"))
            second.start()
            second.join(timeout=1800)
            assert second.exitcode == 2 or not processes[0].is_alive()
            counts["second starts"] += 1
        alive = [process for process in processes if process.is_alive()]
        if alive and moments.random() < 0.4:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(moments.choice(alive).pid, moments.choice([signal.SIGTERM, signal.SIGINT]))
            counts["stops"] += 1
            for process in processes:
                process.join(timeout=60)
        moments.shuffle(alive)
        for process in alive:
            counts["kills"] += process.is_alive()
            process.kill()
        for process in processes:
            process.join()
    finish(begin("x", "--resume", "latest"))
    print(f"{world} processes: {counts}")
    assert_same_students(tmp_path, "whole", "x")
    assert [*tmp_path.rglob("*.tmp")] == []
    there = {path.name for path in (tmp_path / "runs" / "x").iterdir()}
    left = {
        "checkpoints",
        "classes.txt",
        "config.yaml",
        "metrics.jsonl",
        "student.safetensors",
        "summary.json",
    }
    assert there == left
    assert len([*(tmp_path / "runs" / "x" / "checkpoints").iterdir()]) <= 2


def steps_made_or_none(folder: Path, name: str) -> int:
    log = folder / "runs" / name / "metrics.jsonl"
    return steps_made(folder, name) if log.exists() else 0
