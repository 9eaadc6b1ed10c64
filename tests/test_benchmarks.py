"""The benchmarks measure what they say: counts by hand, parts that sum up, two loops that play one game."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import launches, run_all, sources, studies
from benchmarks.baseline_loop import MEAN, STD, PlainGame
from benchmarks.end_to_end import FixedViews, rows_of
from benchmarks.records import students
from benchmarks.roofline import Ceilings, least_s, passes, total_bytes, total_flops
from benchmarks.step import READY, compare, enter
from benchmarks.step_game import PARTS, Game, Setting
from fastanc.batch import Batch
from fastanc.jobs.plan import load_of
from fastanc.jobs.study_table import Row, as_values
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, TeacherSpec
from fastanc.models import zoo
from fastanc.parsing import parse
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import Picks
from fastanc.pipelines.views import RandomResizedCrop
from fastanc.teacher.online import Online
from fastanc.training.processes import seed_step

TINY = Setting(student="resnet8", teacher="resnet14", image_px=32, num_classes=10, batch=4, precision="fp32")
CPU = torch.device("cpu")
UNIT = Ceilings(bytes_per_s=1.0, flops_per_s=1.0)


def test_one_convolution_by_hand() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    macs, read, written, weights = 8 * 3 * 9 * 16 * 16, 3 * 256, 8 * 256, 8 * 3 * 9
    frozen = passes(conv, 3, 16, trained=False)
    assert total_flops(frozen) == 2 * macs
    assert total_bytes(frozen, batch=5, itemsize=2) == 2 * (5 * (read + written) + weights)
    # Nobody needs the images' gradient: forward and the weights' gradient, then SGD in fp32.
    trained = passes(conv, 3, 16, trained=True)
    assert total_flops(trained) == 4 * macs
    moved = 2 * 2 * (5 * (read + written) + weights) + 4 * 5 * weights
    assert total_bytes(trained, batch=5, itemsize=2) == moved


def test_inner_layer_has_three_products_and_the_slower_ceiling_counts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    first, second = 2 * 12 * 64, 2 * 16 * 64
    assert total_flops(passes(network, 3, 8, trained=True)) == 2 * first + 3 * second
    frozen = passes(network, 3, 8, trained=False)
    by_bytes = 4 * ((7 + 8) * 64 * 2 + 12 + 16)
    assert least_s(frozen, 2, 4, Ceilings(1.0, 1e9)) == by_bytes
    assert least_s(frozen, 2, 4, Ceilings(1e9, 1.0)) == 2 * (first + second)


def test_resnet18_has_the_published_macs() -> None:
    network = zoo.build("torchvision:resnet18", num_classes=1000, image_px=224)
    assert total_flops(passes(network, 3, 224, trained=False)) / 2 == 1_814_073_344  # torchvision says 1.81 G


def test_parts_of_a_step_sum_to_the_whole() -> None:
    rows = compare(TINY, ["supervised", "anc online", "anc cached"], ["eager"], 2, CPU, UNIT)
    assert [row["variant"] for row in rows] == ["supervised", "anc online", "anc cached"]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(4000 / row["step_ms"])
        # medians over two turns are means, so the sums agree
        assert sum(row[f"{part}_ms"] for part in PARTS) == pytest.approx(row["step_ms"], rel=1e-6)
    supervised, online, cached = rows
    assert supervised["time_of_supervised"] == supervised["cpu_of_supervised"] == 1
    assert supervised["discriminator_play_ms"] == 0 < cached["discriminator_play_ms"]
    assert all(row["optimizer_ms"] > 0 for row in rows)


def test_sources_are_what_the_variant_says(tmp_path) -> None:
    teacher = TINY.network(TINY.teacher).eval()
    played = {
        name: enter(name, TINY, teacher, CPU, tmp_path / name, "eager").game
        for name in ("anc online", "anc filling", "anc cached", "ksanc cached")
    }
    for game in played.values():
        game.turn(2)
        game.teacher.close()
    counts = {name: (game.teacher.rows_computed, game.teacher.rows_read) for name, game in played.items()}
    read = dict.fromkeys(("anc cached", "ksanc cached"), (0, 8))
    assert counts == {"anc online": (8, 0), "anc filling": (8, 0), **read}


def test_every_method_is_played_with_the_teacher_s_outputs_at_hand(tmp_path) -> None:
    kinds = Method.get_known_choices().items()  # other tests register some of their own
    ours = {name for name, kind in kinds if kind.__module__.startswith("fastanc.methods.")}
    assert {name.removesuffix(" ready") for name in READY} == ours - {"datafree", "ksanc_teacher"}
    teacher = TINY.network(TINY.teacher).eval()
    for name, (kind, _) in READY.items():
        game = enter(name, TINY, teacher, CPU, tmp_path / name, "eager").game
        assert game.method.kind == kind
        before = {key: value.clone() for key, value in game.players["student"].module.state_dict().items()}
        game.turn(2)
        after = game.players["student"].module.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before if "conv1" in key), name


def test_what_a_method_costs_is_above_the_supervised_step() -> None:
    supervised, crd = compare(TINY, ["supervised", "crd ready"], ["eager"], 1, CPU, UNIT)
    assert supervised["above_supervised_ms"] == supervised["cpu_above_supervised_ms"] == 0
    assert crd["above_supervised_ms"] == pytest.approx(crd["step_ms"] - supervised["step_ms"])


@pytest.mark.parametrize("student", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_plain_loop_and_fastanc_play_the_same_game(student: str) -> None:
    """Two steps in float64; the teacher is as wide as ResNet-18, so ResNet-50 has an adapter.

    `Online` answers in fp32, whose rounding two steps make a hundred times larger: it is compared by itself, and the
    game asks the network.
    """
    mean, std = (0.5, 0.25, 0.5), (0.25, 0.5, 0.125)  # exact in fp32, in which a network keeps them
    shape = {"num_classes": 10, "image_px": 32, "mean": mean, "std": std}
    ours, teacher, theirs = (
        zoo.build(f"torchvision:{name}", **shape).double() for name in (student, "resnet18", student)
    )
    theirs.load_state_dict(ours.state_dict())
    plain = PlainGame(teacher.bare, theirs.bare, CPU)
    plain.discriminator.double()
    plain.adapter.double()
    spec = TeacherSpec(10, teacher.feature_dim, (), teacher)
    images, at = [torch.rand(8, 3, 64, 64, dtype=torch.float64) for _ in range(2)], np.arange(8)
    batches = (Batch(image, at, at, None, step) for step, image in enumerate(images))
    online = Online(teacher)
    game = Game(Anc(), ours, lambda batch: teacher(batch.images), batches, CPU, spec=spec)
    modules = {name: module.double() for name, module in game.players.modules().items()}
    modules["discriminator"].load_state_dict(plain.discriminator.state_dict())
    if student == "resnet50":
        modules["student"].adapter.load_state_dict(plain.adapter.state_dict())
    terms: dict[str, float] = {}
    update = game.players.update

    def noted(player, found):
        terms.update({key: float(term.detach()) for key, term in found.items()})
        update(player, found)

    game.players.update = noted  # type: ignore[method-assign]
    for step, image in enumerate(images):
        game.step()
        seed_step(0, step, 0)
        normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert plain.step(normalised) == pytest.approx(terms, rel=1e-10)
        answer = online(Batch(image, at, at, None, step))
        for got, wanted in zip((answer.features, answer.logits), plain.ask_teacher(normalised)):
            assert got.dtype == torch.float32
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()  # the head's sums, in fp32


def test_the_plain_loop_plays_the_same_game_in_channels_last() -> None:
    """Two steps in float64: the same losses and weights; only the memory format, of all maps, is another."""
    teacher, first = (
        zoo.build("torchvision:resnet18", num_classes=10, image_px=32).double() for _ in range(2)
    )
    images = [torch.rand(4, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    discriminator, losses, weights = None, [], []
    for memory in (torch.contiguous_format, torch.channels_last):
        plain = PlainGame(
            copy.deepcopy(teacher.bare), copy.deepcopy(first.bare), CPU, lr=0.01, memory_format=memory
        )
        plain.discriminator.double()
        discriminator = discriminator or copy.deepcopy(plain.discriminator.state_dict())
        plain.discriminator.load_state_dict(discriminator)
        formats = []
        for network in (plain.teacher, plain.student):
            conv = network.get_submodule("layer1.0.conv1")
            conv.register_forward_hook(
                lambda _, given, made: formats.append(  # noqa: B023
                    given[0].is_contiguous(memory_format=torch.channels_last)
                    and made.is_contiguous(memory_format=torch.channels_last)
                )
            )
        torch.manual_seed(0)  # of the dropout
        losses.append([plain.step(image) for image in images])
        weights.append({key: value.clone() for key, value in plain.student.state_dict().items()})
        assert formats == [memory == torch.channels_last] * 4
    for one, other in zip(*losses):
        assert one == pytest.approx(other, rel=1e-9)
    assert weights[0].keys() == weights[1].keys()
    assert not torch.equal(weights[0]["fc.weight"], first.bare.state_dict()["fc.weight"])
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], rtol=1e-9, atol=1e-12), key


def test_a_speed_up_is_over_the_best_plain_loop() -> None:
    """For each rate by itself: here one is the best in seconds, the other in processor seconds."""

    def turns(per_s: list[float], per_cpu_s: list[float]) -> list[dict[str, float]]:
        pairs = zip(per_s, per_cpu_s)
        return [{"images_per_s": a, "images_per_cpu_s": b, "data_share": 0.5} for a, b in pairs]

    rows = rows_of(
        {
            "plain": turns([2, 4, 6], [3, 3, 3]),
            "plain, channels_last": turns([1, 2, 3], [4, 5, 6]),
            "fastanc": turns([8, 12, 24], [12, 10, 6]),
            "fastanc, synthetic": turns([8, 24, 24], [1, 1, 1]),
        },
        TINY,
    )
    plain, last, ours, _ = rows
    assert (plain["times_best_plain"], plain["times_best_plain_per_cpu_s"]) == (1, 0.6)
    assert (last["times_best_plain"], last["times_best_plain_per_cpu_s"]) == (0.5, 1)
    assert (ours["times_best_plain"], ours["times_best_plain_per_cpu_s"], ours["of_synthetic"]) == (4, 2, 1)
    assert (plain["data_share"], ours["data_share"]) == (None, 0.5)


def test_fixed_views_show_the_pixels_of_fastancs_input(real_jpegs, tmp_path) -> None:
    for path in real_jpegs[:6]:
        (tmp_path / "train" / path.parent.name).mkdir(parents=True)
        (tmp_path / "train" / path.parent.name / path.name).write_bytes(path.read_bytes())
    data = JpegSet("few", build_index(tmp_path / "train", progress=False), MEAN, STD)
    rule = RandomResizedCrop(32, seed=3)
    views = FixedViews(tmp_path / "train", data, rule)
    index, view = np.arange(6)[::-1].copy(), np.full(6, 5)
    (batch,) = data.batches([Picks(index, view)], rule)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for k in range(6):
        theirs = views[(int(index[k]), 5)] * std + mean
        assert (theirs - batch.images[k].float() / 255).abs().mean() < 0.02


@pytest.mark.slow
def test_the_four_sources_are_runs_of_the_public_entry(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    words = [
        "--teacher.weights",
        "random",
        "--teacher.name",
        "resnet8",
        "--data.batch",
        "128",
        "--data.views",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["sources", "--recipe", "digits_anc", "--steps", "6", *words])
    monkeypatch.setattr(sources, "record", lambda name, rows: tmp_path / name)
    sources.main()
    found = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [cells[11] for cells in found] == list(sources.SOURCES)
    assert [cells[9] for cells in found] == ["supervised", "anc", "anc", "anc"]


def test_sources_refuse_a_recipe_whose_cache_is_never_complete() -> None:
    with pytest.raises(ValueError, match=r"data\.views is 0"):
        sources.steps_to_fill(parse(["--data.views", "0"]))
    with pytest.raises(ValueError, match=r"schedule\.epochs 2 is below data\.views 8"):
        sources.steps_to_fill(parse(["--schedule.epochs", "2"]))


def test_launches_compare_with_one_process_of_the_same_part() -> None:
    def took(start_s: float, ms_step: float, bytes_step: float) -> dict[str, float]:
        return {"start_s": start_s, "ms_step": ms_step, "bytes_step": bytes_step}

    found = {
        "plain, a part": [took(4, 10, 0), took(6, 20, 0), took(5, 30, 0)],
        "DDP": [took(9, 15, 2e6), took(8, 24, 2e6), took(7, 70, 2e6)],
    }
    part, ddp = launches.rows_of(found, {"plain, a part": 1, "DDP": 2}, 1_900_000)
    assert (part["start_s"], part["ms_step"], part["overhead_ms"], part["planned_mb_step"]) == (
        5,
        20,
        0,
        None,
    )
    assert (ddp["start_s"], ddp["overhead_ms"], ddp["mb_step"], ddp["planned_mb_step"]) == (8, 5, 2.0, 1.9)


def test_a_failed_launch_says_what_the_run_said_and_not_what_torchrun_put_below() -> None:
    log = f"starting\nfastanc: data.decode does nothing here\nTraceback:\n  line 1\n{'=' * 60}\n"
    assert launches.reason(log) == "fastanc: data.decode does nothing here"
    assert launches.reason("one\ntwo\n") == "two"


@pytest.mark.slow
def test_two_launched_processes_move_the_bytes_that_the_plan_says(tmp_path, monkeypatch) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    words = [*launches.RECIPE, *launches.RANDOM_TEACHER, "--student.name", "resnet8", "--data.batch", "32"]
    found = launches.measure_once(words, 45, partial(launches.accelerate, processes=2, zero_stage=None))
    planned = 2 * load_of(parse(words), **launches.DIGITS).gradient_bytes
    # Messages have heads; the watch may see the first line some of the 40 steps late. A player left out is half.
    assert 0.9 * planned < found["bytes_step"] < 1.1 * planned + 50_000


def test_five_students_take_the_sum_of_their_times() -> None:
    names = list(students.STUDENTS)
    slow = {name: {"online": 10.0, "shared": 40.0} for name in names} | {
        names[0]: {"online": 10.0, "shared": 8.0}
    }
    rows = students.rows_of([slow, slow], 80)
    assert [row["cache"] for row in rows[:3]] == ["filled", "read", "read"]
    assert (rows[0]["shared_s"], rows[1]["shared_s"]) == (10, 2)
    assert (rows[-1]["online_s"], rows[-1]["shared_s"], rows[-1]["images"]) == (40, 18, 400)


def test_the_rows_of_a_study_are_those_of_its_table(tmp_path) -> None:
    rows = [Row("anc", (8.0, 9.0), (10.0, 20.0), 3, 8.08), Row("kd", (), (), 3)]
    (tmp_path / "table.json").write_text(json.dumps(as_values("title", rows, "error_pct", [])))
    [row] = studies.rows_of(tmp_path)
    expected = {"study": "title", "row": "anc", "error_pct": 8.5, "n": 2, "wall_s": 15.0, "paper": 8.08}
    assert {key: row[key] for key in expected} == expected
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    studies.draw([row, {**row, "row": "alone", "spread": None, "paper": None}], tmp_path / "plot.svg")
    assert "alone" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(FileNotFoundError, match=r"--out of `fastanc study`"):
        studies.rows_of(tmp_path / "none")


def test_a_study_with_a_base_keeps_differences_and_how_alive_its_games_were(tmp_path) -> None:
    seen = [{"pull_share": 0.2, "distance": 0.5, "top1": 0.9}, {}]
    rows = [
        Row(name, values, (1.0, 1.0), 2, seeds=(0, 1), measures=measures)
        for name, values, measures in zip(("game", "l2"), ((7.0, 10.0), (8.0, 9.0)), seen)
    ]
    (tmp_path / "table.json").write_text(json.dumps(as_values("title", rows, "error_pct", [], "l2")))
    game, l2 = studies.rows_of(tmp_path)
    # -1 and 1: their mean, and their deviation (root of 2) over the root of 2.
    assert (game["less_l2"], game["std_error"]) == (0, pytest.approx(1))
    assert (game["pull_share"], game["distance"], "top1" in game, "held_won" in game) == (
        0.2,
        0.5,
        False,
        False,
    )
    assert [*game] == [*l2], "one table"
    assert l2["less_l2"] is l2["distance"] is None


def test_a_hanging_process_is_ended_and_keeps_what_it_said() -> None:
    # A shell, which has said its line long before the limit on any machine.
    ended = run_all.run_limited(["sh", "-c", "echo ROW 1; sleep 600; echo ROW 2"], 3)
    assert ended.failure == "not done after 3 s"
    assert ended.output == "ROW 1\n"
    crash = run_all.run_limited([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], 600)
    assert crash.failure == "ended by SIGSEGV"
