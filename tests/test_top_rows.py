"""Rows of the most probable classes: exact where they say so, and refused where a method would read more."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastanc.cache.identity import identity
from fastanc.cache.moving import export_cache, import_cache
from fastanc.cache.rows import Field, decode, encode, not_finite, unrounded
from fastanc.cache.store import Store
from fastanc.cli import main as command
from fastanc.config import Config, TeacherConfig
from fastanc.losses import soft_kl
from fastanc.methods.base import Method
from fastanc.methods.kd import Kd
from fastanc.methods.sum import Sum
from fastanc.parsing import configure, parse
from fastanc.teacher.build import break_even
from fastanc.train import train
from support.processes import forked

# Numbers of 15 and 16 bits, and beyond; the most classes are the last ones.
SIZES = [
    (6, "top5", 24),
    (1000, "top10", 44),
    (1000, "top20", 84),
    (65536, "top5", 24),
    (70000, "top20", 124),
]
NEEDS_DIGITS = pytest.mark.skipif(find_spec("sklearn") is None, reason="the digits come with scikit-learn")


def logits_of(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Logits [count, width] whose largest lie all over the row, at its ends too."""
    z = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3
    z[:, -1], z[: count // 2, 0] = 14.0, 13.0
    return z


def kept_classes(z: torch.Tensor, count: int) -> np.ndarray:
    """Whether a class is kept [B, K], by NumPy."""
    order = np.argsort(-z.numpy().astype(np.float64), axis=1, kind="stable")[:, :count]
    mask = np.zeros(z.shape, bool)
    np.put_along_axis(mask, order, True, 1)
    return mask


@pytest.mark.parametrize(("width", "dtype", "num_bytes"), SIZES)
def test_kept_classes_have_their_probability_and_the_others_share_what_is_left(width, dtype, num_bytes):
    field, z = Field("logits", width, dtype), logits_of(6, width)
    rows = encode({"logits": z}, [field])
    assert rows["logits"].shape == (6, field.row_bytes) == (6, num_bytes)
    got = decode(rows, [field])["logits"].double().softmax(1).numpy()
    exact, mask = z.double().softmax(1).numpy(), kept_classes(z, field.top)
    log_p = np.abs(np.log(exact[mask]).reshape(6, -1)).max(1)  # a value is rounded by 2^-11 of itself
    limit = np.repeat(log_p * 2**-10 + 1e-5, field.top)
    assert (np.abs(got[mask] / exact[mask] - 1) < limit).all()
    left = np.where(mask, 0, exact).sum(1)
    np.testing.assert_allclose(np.where(mask, 0, got).sum(1), left, rtol=limit.max())
    others = np.ma.array(got, mask=mask)
    assert (others.max(1) == others.min(1)).all()


def test_of_equal_classes_the_first_are_kept():
    z = torch.zeros(2, 300)
    z[1, 100:] = 1
    ids = decode(encode({"logits": z}, [Field("logits", 300, "top10")]), [Field("logits", 300, "top10")])
    largest = ids["logits"][1] > ids["logits"][1].min()
    assert torch.equal(largest.nonzero().flatten(), torch.arange(100, 110))


@pytest.mark.parametrize(("temperature", "sign"), [(1.0, 0), (4.0, 1), (0.5, -1)])
def test_the_others_get_what_the_docs_say_at_every_temperature(temperature, sign):
    field, z = Field("logits", 100, "top10"), logits_of(8, 100)
    got = decode(encode({"logits": z}, [field]), [field])["logits"].double()
    mask = kept_classes(z, 10)
    share, exact = (
        np.where(mask, 0, (logits.double() / temperature).softmax(1).numpy()).sum(1) for logits in (got, z)
    )
    if sign:
        assert (sign * (share - exact) > 0.001 * exact).all()
    else:
        np.testing.assert_allclose(share, exact, rtol=2**-7)


def test_the_loss_of_a_student_is_that_of_the_classes_and_one_bin():
    """KL at temperature 1, against the sum over the kept classes and the others, by hand in float64."""
    field, teacher, student = Field("logits", 50, "top5"), logits_of(4, 50), logits_of(4, 50, seed=1)
    rows = decode(encode({"logits": teacher}, [field]), [field])["logits"]
    p, q = teacher.double().softmax(1).numpy(), student.double().softmax(1).numpy()
    mask = kept_classes(teacher, 5)
    total = 0.0
    for row in range(4):
        keep = mask[row]
        total += (p[row][keep] * np.log(p[row][keep] / q[row][keep])).sum()
        mean = p[row][~keep].sum() / 45
        total += (mean * (np.log(mean) - np.log(q[row][~keep]))).sum()
    assert soft_kl(student, rows, 1.0).item() == pytest.approx(total / 4, rel=2e-3)


def test_a_single_row_and_a_strided_one_decode_as_among_others():
    for width, dtype in ((70000, "top5"), (1000, "top10"), (5, "uint8")):
        field = Field("logits" if dtype != "uint8" else "features", width, dtype)
        whole = encode({field.name: logits_of(5, width)}, [field])[field.name]
        together = decode({field.name: whole}, [field])[field.name]
        for k in range(5):
            assert torch.equal(decode({field.name: whole[k : k + 1]}, [field])[field.name][0], together[k])
        wide = torch.cat((whole, whole), 1)[:, : whole.shape[1]]
        assert torch.equal(decode({field.name: wide}, [field])[field.name], together)


def test_what_is_not_finite_is_found():
    field, z = Field("logits", 30, "top5"), logits_of(6, 30)
    z[1, 3], z[2, 4], z[3, 5], z[4] = torch.nan, torch.inf, -torch.inf, torch.nan
    z[5, :27] = -torch.inf  # of which two would be kept
    found = not_finite(encode({"logits": z}, [field])["logits"], field)
    assert found.tolist() == [False, True, True, False, True, True]


def test_values_are_compared_with_the_classes_that_were_kept():
    field, z = Field("logits", 40, "top5"), logits_of(3, 40)
    rows = encode({"logits": z}, [field])
    nearly = z + 1e-4 * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    for seen in (z, nearly, nearly + 5):  # a softmax does not know a shift
        difference = unrounded({"logits": seen}, rows, [field])["logits"] - decode(rows, [field])["logits"]
        assert difference.abs().max() < 16 * 2**-10
    other = unrounded({"logits": logits_of(3, 40, seed=9)}, rows, [field])["logits"]
    assert (other - decode(rows, [field])["logits"]).abs().max() > 1


@pytest.mark.parametrize("width", [4, 5])
def test_fewer_classes_than_a_row_keeps_is_a_sentence(width):
    with pytest.raises(
        ValueError, match=rf"teacher\.rows top5 keeps 5 of .* which are {width}: set it to fp16"
    ):
        Field("logits", width, "top5")
    with pytest.raises(ValueError, match="are of logits, not features"):
        Field("features", 512, "top5")


def accepted(method: Method) -> bool:
    with suppress(ValueError):
        return bool(Config(method=method, teacher=TeacherConfig(rows="top10")))
    sentence = rf"teacher\.rows top10 keeps .* method\.type {method.kind} reads more .*: set it to fp16"
    with pytest.raises(ValueError, match=sentence):
        Config(method=method, teacher=TeacherConfig(rows="top10"))
    return False


def test_only_methods_that_soften_the_classes_take_them():
    kinds = Method.get_known_choices()
    found = {
        name for name, kind in kinds.items() if kind.__module__.startswith("fastanc.") and accepted(kind())
    }
    # Neither a teacher (supervised, ksanc's own) nor rows (latent vectors): nothing is kept there.
    without = {name for name in found if not kinds[name]().needs_teacher} | {"datafree"}
    assert found - without == {"kd", "dkd", "nkd", "dist", "mlkd"}


def test_options_that_read_all_logits_are_refused():
    for name in ("kd", "dkd", "mlkd"):
        assert not accepted(Method.get_known_choices()[name](standardised=True))
    assert accepted(Kd(hard=True))
    assert accepted(Sum(parts=("kd", "dist", "supervised")))
    assert not accepted(Sum(parts=("kd", "l2")))
    assert Sum(parts=("kd", "nkd")).softened_at == (4.0, 1.0, 1.0)

    @dataclass(frozen=True, kw_only=True)
    class Greedy(Kd):
        needs = frozenset({"logits", "features"})

    assert not Greedy().softens_only


def test_without_a_cache_the_rows_do_not_matter():
    assert configure("digits_anc", {"teacher.rows": "top5", "teacher.cache": "off"}).method.kind == "anc"


def test_the_cost_line_says_what_whole_rows_would_take():
    said = break_even(1_281_167, 52, 30, 300, 1, whole_bytes=4104)
    assert said.startswith("30 views x 1,281,167 images x 52 bytes (4,104 of all as fp16) = 1.999 GB; 30 ")


FACTS = identity({"name": "noise"}, {"out_px": 8}, {"boxes_crc": 0}, {"name": "small"})


def store_of(path: Path) -> Store:
    return Store.open(path, FACTS, [Field("logits", 200, "top10")], 60, create=True)


def test_a_cache_of_them_is_filled_by_two_processes_checked_and_moved(tmp_path):
    z = logits_of(60, 200)
    store = store_of(tmp_path / "a")

    def half(first: int) -> None:
        for k in range(first, 60, 20):
            index = np.arange(k, k + 10)
            store_of(tmp_path / "a").put(0, index, {"logits": z[index]})

    children = [forked(lambda first=first: half(first)) for first in (0, 10)]
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    field = store.fields[0]
    wanted = decode(encode({"logits": z}, [field]), [field])["logits"].numpy()
    exported = export_cache(store, tmp_path / "rows.tar")
    came = import_cache(exported, tmp_path / "b")
    assert (came.rows, came.wrong) == (60, 0)
    reader = came.store.reader()
    np.testing.assert_array_equal(reader.get(np.arange(60), np.zeros(60, int))["logits"], wanted)
    reader.close()
    (file,) = came.store.path.glob("view-*/logits.rows")
    with open(file, "r+b") as rows:
        rows.seek(44 * 7 + 9)
        byte = rows.read(1)
        rows.seek(44 * 7 + 9)
        rows.write(bytes([byte[0] ^ 4]))
    (found,) = came.store.verify(drop=True)
    assert found.wrong["logits"].tolist() == [7]
    assert came.store.missing(0).tolist() == [7]
    with pytest.raises(FileNotFoundError, match="which differs in fields"):
        Store.open(tmp_path / "b", FACTS, [Field("logits", 200, "top20")], 60)


BASE = [
    *("--method.type", "kd", "--method.alpha", "1", "--teacher.rows", "top5", "--teacher.weights", "random"),
    *("--teacher.name", "resnet8", "--data.batch", "48", "--schedule.epochs", "2", "--data.views", "1"),
    *("--data.mix", "mixup", "--run.eval_every", "0", "--run.kernels", "plain"),
    *("--data.share", "0.1"),
]


@NEEDS_DIGITS
def test_the_first_student_sees_what_later_ones_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def student(name: str, *args: str) -> dict[str, torch.Tensor]:
        return load_file(train(parse([*BASE, "--run.name", name, *args])) / "student.safetensors")

    first = student("first")
    assert "softened by 4 their share is not the teacher's" in capsys.readouterr().err
    later = student("later", "--teacher.cache", "read")
    assert all(torch.equal(first[key], later[key]) for key in first)
    student("stopped", "--teacher.cache_dir", "other", "--run.max_steps", "3", "--run.checkpoint_every", "3")
    resumed = student("stopped", "--teacher.cache_dir", "other", "--run.resume", "latest")
    assert all(torch.equal(first[key], resumed[key]) for key in first)
    # What students are compared by is kept whole.
    fields = sorted(field.dtype for path in Path("cache").iterdir() for field in Store.at(path).fields)
    assert fields == ["fp16", "top5"]


@NEEDS_DIGITS
def test_the_commands_of_a_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = BASE
    assert command(["cache", "build", *words]) == 0
    assert "x 32 bytes (136 of all as fp16) = " in capsys.readouterr().out  # 24 and 128, with 8 of a checksum
    assert command(["cache", "verify", *words, "--teacher", "50"]) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"logits: .*, ([0-9.e-]+) of its row", out)[1]) < 2**-10
    (folder,) = Path("cache").iterdir()
    assert command(["cache", "prune", str(folder), "--views", "0"]) == 0
    assert command(["cache", "info", str(folder)]) == 0
    assert '"dtype": "top5"' in capsys.readouterr().out
    assert command(["cache", "build", *words, "--teacher.rows", "top10"]) == 2
    assert "teacher.rows top10 keeps 10 of the teacher's classes, which are 10" in capsys.readouterr().err
    assert command(["cache", "build", "--method.type", "l2", *words[4:]]) == 2
    assert "method.type l2 reads more of the teacher" in capsys.readouterr().err
