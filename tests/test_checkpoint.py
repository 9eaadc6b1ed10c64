"""Checkpoints: what is damaged is refused by name, the newest sound one is used, nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import zlib
from pathlib import Path

import draccus
import pytest
import torch

from fastanc.config import free_fields
from fastanc.parsing import method_names, parse
from fastanc.training.checkpoint import Checkpoints, check_same, damage, load


def _write(folder: Path, steps: list[int], keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"student": {"w": torch.full((1000,), float(step))}}, {"config": {}})
    checkpoints.wait()
    return checkpoints


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    checkpoints = _write(tmp_path, [1, 2, 3], keep=2)
    assert [p.name for p in checkpoints.complete()] == ["step-00000002", "step-00000003"]
    state, meta = load(checkpoints.latest()[0])
    assert meta["step"] == 3
    assert torch.equal(state["student"]["w"], torch.full((1000,), 3.0))


def test_a_run_started_over_keeps_its_own(tmp_path: Path) -> None:
    _write(tmp_path, [10, 20, 30], keep=2)
    assert [p.name for p in _write(tmp_path, [5], keep=2).complete()] == ["step-00000005"]


def test_snapshot_is_taken_at_the_call(tmp_path: Path) -> None:
    weight = torch.zeros(4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": weight}, {})
    weight.fill_(7)
    checkpoints.wait()
    assert torch.equal(load(checkpoints.latest()[0])[0]["w"], torch.zeros(4))


def _flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


DAMAGES = {
    "checksum": _flip,
    "bytes instead of": lambda p: os.truncate(p / "state.pt", 100),
    "is missing": lambda p: (p / "meta.json").unlink(),
    "not finished": lambda p: (p / "COMPLETE").write_text("{"),
}


@pytest.mark.parametrize("word", DAMAGES)
def test_damage_is_named_and_the_previous_one_is_used(tmp_path: Path, word: str) -> None:
    checkpoints = _write(tmp_path, [1, 2])
    DAMAGES[word](tmp_path / "step-00000002")
    path, refused = checkpoints.latest()
    assert path.name == "step-00000001"
    assert len(refused) == 1
    assert word in refused[0]
    assert "step-00000002" in refused[0]
    with pytest.raises(ValueError, match="refused"):
        load(tmp_path / "step-00000002")


def test_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = _write(tmp_path, [1])
    (tmp_path / "step-00000005").mkdir()
    assert checkpoints.latest()[0].name == "step-00000001"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


STRANGE = {
    "code": pickle.dumps(Evil()),
    "no pickle": b"\x00" * 100,
    "no zip": b"PK\x03\x04" + b"\xff" * 100,
    "a wrong mark": b"\x80\x02h\x05.",
    "a wrong stack": b"\x80\x02R.",
    "a wrong length": b"\x80\x02(lp0\nI-1\nb.",
    "a list": pickle.dumps([1], 2),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_sealed_file_of_something_else_is_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path / "checkpoints", [1]).latest()[0]
    data = STRANGE[kind]
    (path / "state.pt").write_bytes(data)
    seal = json.loads((path / "COMPLETE").read_text())
    seal["state.pt"] = [len(data), zlib.crc32(data)]
    (path / "COMPLETE").write_text(json.dumps(seal))
    assert damage(path) is None
    with pytest.raises(ValueError, match=r"step-00000001 is refused: it holds something else"):
        load(path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("seal", ["[]", "{}", "3", '{"state.pt": 1}', '{"state.pt": [], "meta.json": []}'])
def test_a_strange_mark_is_none(tmp_path: Path, seal: str) -> None:
    path = _write(tmp_path, [1]).latest()[0]
    (path / "COMPLETE").write_text(seal)
    assert "not finished" in str(damage(path))


# What a resumed run may change, written out a second time on purpose.
FREE = {
    "run": {
        *(
            "out",
            "name",
            "compile",
            "deterministic",
            "max_steps",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep",
        ),
        *("resume", "accumulate", "skip_nonfinite", "best", "patience", "trackers"),
    },
    "data": {"root", "threads", "prefetch", "decode", "eval_batch"},
    "teacher": {"weights", "estimators", "recipe", "cache", "cache_dir", "memory_gib"},
    **{group: set() for group in ("student", "method", "optimizer", "schedule")},
}


@pytest.mark.parametrize("method", method_names())
def test_every_field_is_free_or_fixed_as_the_table_says(method: str) -> None:
    config = parse(["--method.type", method])
    assert free_fields(config) == FREE
    old = draccus.encode(config)
    assert old.keys() == FREE.keys()
    for group in old:
        for key in old[group]:
            new = {**old, group: {**old[group], key: "another"}}
            if key in FREE[group]:
                check_same(Path("step-1"), old, new, free_fields(config))
                continue
            with pytest.raises(ValueError, match=rf"step-1 was written with {group}\.{key} .*'another'"):
                check_same(Path("step-1"), old, new, free_fields(config))


def test_full_disk_leaves_the_last_one_and_says_so(tmp_path: Path) -> None:
    script = f"""
import resource, signal, torch, pathlib
from fastanc.training.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
c = Checkpoints(pathlib.Path({str(tmp_path)!r}))
c.save(1, {{"w": torch.zeros(10)}}, {{}}); c.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
c.save(2, {{"w": torch.zeros(1_000_000)}}, {{}})
try:
    c.wait()
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1800)
    assert "step-00000002 could not be written" in done.stdout, done.stderr
    assert "resume from" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert damage(tmp_path / "step-00000001") is None


@pytest.mark.slow
def test_killed_writer_never_leaves_a_false_complete(tmp_path: Path) -> None:
    script = f"""
import torch, pathlib
from fastanc.training.checkpoint import Checkpoints
c = Checkpoints(pathlib.Path({str(tmp_path)!r}), keep=3)
step = 0
while True:
    step += 1
    c.save(step, {{"w": torch.full((500_000,), float(step))}}, {{}}); c.wait(); print(step, flush=True)
"""
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.11 * round_)
        process.kill()
        process.wait()
        path, refused = Checkpoints(tmp_path).latest()
        assert refused == []
        state, meta = load(path)
        assert float(state["w"][0]) == meta["step"]
