"""The GPU's day: no part starves another, what was found stays, a plain checkout is enough, DDP is the bare step."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_parts, gpu_reducer, run_all
from benchmarks.gpu_parts import CALL_S, CALLS, PARTS, allowance
from benchmarks.gpu_results import ESTIMATES_S, GRACE_S, JOBS, START_S, Job, needed_s, results, share_of
from benchmarks.gpu_rows import Part, row
from benchmarks.gpu_tests import run_tests
from benchmarks.harness import ROOT, Recording
from benchmarks.step_game import Setting
from fastanc.jobs.study_file import load

TINY = Setting(student="resnet8", teacher="resnet14", image_px=32, num_classes=10, batch=4, precision="fp32")


def test_every_part_is_in_one_call_and_the_first_gets_its_whole_limit() -> None:
    assert sorted(name for names in CALLS for name in names) == sorted(PARTS)
    for names in CALLS:
        assert allowance(names, CALL_S) == PARTS[names[0]].limit_s
        assert sum(PARTS[name].least_s for name in names) <= CALL_S - 10  # starts and ends of processes
    assert CALLS[0][0] == "tests"


@pytest.mark.parametrize("seed", range(20))
def test_no_part_starves_whatever_the_others_take(seed: int) -> None:
    chance = random.Random(seed)
    for names in CALLS:
        left_s = CALL_S - 10
        for k, name in enumerate(names):
            allowed_s = allowance(names[k:], left_s)
            assert PARTS[name].least_s <= allowed_s <= PARTS[name].limit_s
            left_s -= allowed_s * chance.choice([1, 1, chance.random()])
        assert left_s >= 0


def test_a_call_that_began_late_serves_its_first_parts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "PARTS", {"a": Part(iter, 100, 40), "b": Part(iter, 100, 50)})
    assert allowance(["a", "b"], 200) == 100
    assert allowance(["a", "b"], 120) == 70
    assert allowance(["a", "b"], 60) == 40  # b is cut, not a
    assert allowance(["a", "b"], 30) == 30


def test_a_part_that_is_ended_keeps_its_rows_and_says_where(tmp_path: Path) -> None:
    """Its second row waits for a file that is made when the first one is kept: so it was kept before the end."""
    heard, sign = [], tmp_path / "sign"
    recording = Recording("gpu-check", tmp_path)

    def keep(found: gpu_check.Row) -> None:
        heard.append(found)
        recording.add(found)
        sign.touch()

    first, second = (json.dumps(row(name, ms=1.5)) for name in ("one", "two"))
    script = f"echo CASE one; echo 'ROW {first}'; until test -e {sign}; do sleep 0.05; done; "
    script += f"echo 'ROW {second}'; echo CASE three; sleep 600"
    gpu_check.run_part(["sh", "-c", script], "decode", 2, keep)
    assert [(found["case"], found["says"]) for found in heard] == [
        ("one", ""),
        ("two", ""),
        ("ended in: three", "FAILED: not done after 2 s"),
    ]
    [line] = recording.path.read_text().splitlines()
    assert json.loads(line)["rows"] == heard
    assert {found["part"] for found in heard} == {"decode"}


def test_a_run_s_line_grows_beside_those_of_other_runs(tmp_path: Path) -> None:
    one, _ = Recording("x", tmp_path), Recording("y", tmp_path)
    one.add({"a": 1})
    two = Recording("x", tmp_path)
    two.add({"b": 1}, {"b": 2})
    one.add({"a": 2})
    lines = [json.loads(line) for line in one.path.read_text().splitlines()]
    assert [line["rows"] for line in lines] == [[{"a": 1}, {"a": 2}], [{"b": 1}, {"b": 2}]]


def test_what_torchrun_started_is_ended_too(tmp_path: Path) -> None:
    """Its workers have sessions of their own, so ending the group does not reach them."""
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & wait"
    assert run_all.run_limited(["sh", "-c", script], 1).failure == "not done after 1 s"
    worker = Path("/proc") / (tmp_path / "pid").read_text().strip()
    for _ in range(50):
        if not worker.exists() or ") Z " in (worker / "stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker lives")


def test_a_command_may_save_itself_before_it_is_ended() -> None:
    script = "trap 'echo saved; exit 0' TERM; while :; do sleep 0.05; done"
    ended = run_all.run_limited(["sh", "-c", script], 10, grace_s=9)
    assert ended.output == "saved\n"
    assert ended.seconds < 9


@pytest.mark.parametrize("options", [["-S"], []], ids=["no installation", "another checkout's installation"])
def test_a_plain_checkout_finds_its_own_pipelines(options: list[str], tmp_path: Path) -> None:
    for name in ("fastanc/__init__.py", "pipelines/__init__.py", "benchmarks/__init__.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "benchmarks" / "checkout.py", tmp_path / "benchmarks")
    ask = "import fastanc.pipelines as p, os; print(os.path.realpath(p.__file__))"
    make = "from benchmarks.checkout import make_importable; print(make_importable()); "
    for words, made in ((make + ask, "True"), (make + ask, "False"), (ask, "")):
        done = subprocess.run(
            [sys.executable, *options, "-c", words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.split() == [*made.split(), str(tmp_path / "pipelines" / "__init__.py")], (
            done.stderr
        )


def test_a_part_whose_package_is_missing_says_so(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lacks(name: str):
        def run(rehearse: bool):
            yield row("first")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run

    monkeypatch.setattr(gpu_check, "RUNS", {"theirs": lacks("timm.models"), "ours": lacks("fastanc.lost")})
    gpu_check.work("theirs", True)
    rows = [json.loads(line[4:]) for line in capsys.readouterr().out.splitlines()]
    assert [found["says"] for found in rows] == ["", "needs timm"]
    with pytest.raises(ModuleNotFoundError):
        gpu_check.work("ours", True)


def test_tests_are_rows_by_file_and_one_that_cannot_be_imported_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_a.py").write_text("import no_such_package\n")
    (tmp_path / "test_b.py").write_text("def test_good(): pass\ndef test_bad(): assert 0\n")
    (tmp_path / "test_c.py").write_text("import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n")
    rows = list(run_tests(sorted(tmp_path.glob("test_*.py")), ["-p", "no:cacheprovider"]))
    found = {Path(found["case"]).name: found["says"] for found in rows}
    assert found["test_b.py::test_bad"].startswith("FAILED")
    assert found["test_b.py"] == "1 passed, 1 failed"
    assert found["test_c.py"] == "1 skipped"
    assert found["test_a.py"] == "needs no_such_package"
    assert re.match("1 failed, 1 passed, 1 skipped, 1 error", found["pytest -m gpu"])
    assert len(rows) == 5
    assert "CASE collecting the tests" in capsys.readouterr().out


def test_ddp_is_the_bare_module_s_step_to_the_bit() -> None:
    """By gloo, in a group of one; a reducer that loses a gradient's half is found."""

    def halving(module):
        def halve(_, bucket):  # DDP reads annotations, which are texts here
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer() / 2)
            return done

        wrapped = gpu_reducer.in_ddp(module)
        wrapped.register_comm_hook(None, halve)
        return wrapped

    wraps = {"bare": None, "DDP": gpu_reducer.in_ddp, "broken": halving}
    bare, ddp, broken = gpu_reducer.rows_of(TINY, torch.device("cpu"), "eager", wraps, 3)
    assert bare["says"] == ddp["says"] == "the same bits as the bare module's"
    assert broken["says"].startswith("FAILED")


def test_results_take_what_fits_and_go_on_with_what_was_begun() -> None:
    def job(estimate_s: float, done: float = 0.0) -> Job:
        return Job(iter, estimate_s, lambda: done)

    jobs = {
        "long": job(500),
        "begun": job(400, 0.75),
        "finished": job(500, 1.0),
        "short": job(100),
        "late": job(60),
    }
    started, left = [], 300.0

    def start(name: str, limit_s: float) -> None:
        nonlocal left
        started.append((name, limit_s))
        left -= needed_s(jobs[name])

    says = {name: found["says"] for name, found in results(jobs, lambda: left, start)}
    assert started == [("begun", 300.0), ("short", 170.0)]  # 30 s of start and 100 s each
    assert says == {
        "long": "left out: it needs about 530 s, 300 s are left",
        "finished": "finished before",
        "late": "left out: it needs about 90 s, 40 s are left",
    }


def test_every_job_fits_a_call_and_is_a_row_of_its_study() -> None:
    for job in JOBS.values():
        assert START_S + job.estimate_s + GRACE_S <= CALL_S
    for study in ("cifar10_full", "fashion_full"):
        rows = {name for axis in load(study).grid for name in axis}
        assert rows == {name for of, name in ESTIMATES_S if of == study} == set(load(study).paper)


def test_the_share_that_is_done_is_read_from_a_run_that_was_ended(tmp_path: Path) -> None:
    assert share_of(tmp_path) == 0
    (tmp_path / "config.yaml").write_text("schedule: {epochs: 8}\n")
    assert share_of(tmp_path) == 0
    lines = [{"kind": "train", "epoch": 1.0}, {"kind": "train", "epoch": 2.0}, {"kind": "val", "epoch": 9.0}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr'
    )
    assert share_of(tmp_path) == 0.25


def test_the_document_names_every_part_and_job() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert named == [*(name for names in CALLS for name in names)]
    assert all(name.split()[0] in text for name in JOBS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_check_without_a_gpu_says_so_and_succeeds(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 0
    assert "--rehearse" in capsys.readouterr().out


@pytest.mark.slow
def test_gpu_check_rehearses(data_root, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = tmp_path.glob("gpu-check-*.jsonl")
    assert {found["part"] for found in json.loads(file.read_text())["rows"]} == set(PARTS)
