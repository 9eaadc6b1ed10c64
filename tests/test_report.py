"""The runs' table and the HTML report, read back with the standard library's parser."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import game_curves
from fastanc.cli import main
from fastanc.jobs import report, report_figures
from fastanc.jobs.report import summary_table, write_csv, write_report
from fastanc.training.folder import Owner, owner_of

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

SUMMARY = {
    "name": "anc-cached",
    "method": "anc",
    "student": "resnet20",
    "teacher": "resnet56",
    "dataset": "cifar10",
    "labels": 50_000,
    "params": 272_474,
    "teacher_params": 855_770,
    "macs": 41_214_464,
    "epochs": 2,
    "val": {
        "top1": 0.9231,
        "top5": 0.997,
        "error_pct": 7.69,
        "agreement_pct": 92.155,
        "teacher_kl": 0.21734,
        "teacher_top1": 0.9339,
    },
    "best": {"metric": "error_pct", "value": 7.12, "steps": 800, "epoch": 1.5},
    "images_per_s": 2310.4,
    "data_share": 0.031,
    "teacher_share": 0.02,
    "wall_s": 3720.0,
    "teacher_source": "cached",
    "phases": {"train_s": 3700.5},
}
CELLS = ["finished", "anc", "resnet20 ← resnet56", "cached", "50,000", "272 k", "3.14 x", "41.2 M"]
CELLS += ["7.69 %", "6.61 %", "92.16 %", "0.2173", "7.12 at 800", "2,310", "3.1%", "2.0%", "1 h 02 min"]


def run(folder: Path, summary: dict[str, Any] | None = None, disc: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(4, 20, 5):
        line = {
            "kind": "train",
            "step": step,
            "epoch": (step + 1) / 10,
            "lr": 0.1,
            "student/l2": 9.0 - step / 5,
        }
        if disc:
            line |= {"discriminator/bce": 1.3, "d_teacher": 0.7, "d_student": 0.3, "won": 0.6}
        lines.append(line)
    lines.append({"kind": "note", "step": 9, "text": "bound by <teacher>"})
    lines += [{"kind": "val", "step": s, "epoch": (s + 1) / 10, "error_pct": 30.0 - s} for s in (9, 19)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("method:\n  type: anc # <&>\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(HTMLParser):
    """Collects the texts of a page by tag, and what it would load from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        wanted = [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "data")]
        self.loads += [value for value in wanted if not value.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def write(tmp_path: Path, *folders: Path) -> tuple[str, Page]:
    text = write_report(folders, tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_terminal_table_shows_every_number_in_aligned_columns(tmp_path: Path) -> None:
    short = {"name": "x", "val": {}, "params": 11_689_512, "wall_s": 75.4, "macs": 1.8e9, "student": "s"}
    table = summary_table([run(tmp_path / "a", SUMMARY), run(tmp_path / "b", short)]).splitlines()
    assert re.split(r" {2,}", table[2]) == ["anc-cached", *CELLS[1:]]  # all are finished
    assert re.split(r" {2,}", table[3]) == [
        *("x", "–", "s"),
        *"––",
        *("11.7 M", "–", "1.8 G"),
        *"––––––––",
        "1 min 15 s",
    ]
    assert len(table) == 4
    assert {len(line) for line in table} == {len(table[0])}


def head(table: str) -> list[str]:
    return re.split(r" {2,}", table.splitlines()[0])


def test_columns_that_say_nothing_are_left_out_of_the_terminal_table_alone(tmp_path: Path) -> None:
    plain = {key: value for key, value in SUMMARY.items() if key not in ("best", "teacher_source")}
    runs = [run(tmp_path / name, {**plain, "name": name, "teacher_source": None}) for name in ("a", "b")]
    every = ["run", "state", *(key for key in report._COLUMNS if key != "state")]
    assert head(summary_table(runs)) == [key for key in every if key not in ("state", "best", "teacher from")]
    _, page = write(tmp_path, *runs)
    assert [title for title in page.texts["th"] if title] == every
    with write_csv(runs, tmp_path / "runs.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["state"] == "finished"
    going = run(tmp_path / "going")
    table = summary_table([*runs, going])
    assert head(table)[1] == "state"
    assert [re.split(r" {2,}", line)[1] for line in table.splitlines()[2:]] == [
        "finished",
        "finished",
        "stopped",
    ]


@pytest.mark.parametrize("width", [200, 119, 100, 60])
def test_columns_without_room_are_named_below_the_table(tmp_path: Path, width: int) -> None:
    runs = [run(tmp_path / "a", SUMMARY), run(tmp_path / "b", {**SUMMARY, "name": "another"})]
    whole, (*table, last) = summary_table(runs).splitlines(), summary_table(runs, width).splitlines()
    if width == 200:
        assert [*table, last] == whole
        return
    assert max(map(len, table)) <= width
    named = last.removeprefix("no room for ").partition(": ")[0].split(", ")
    assert [name for name in head(whole[0]) if name not in named] == head(table[0])
    assert {"run", "student ← teacher", "error"} <= set(head(table[0]))
    shown = {name: k for k, name in enumerate(head(whole[0]))}
    cells = re.split(r" {2,}", whole[3])
    assert re.split(r" {2,}", table[3]) == [cells[shown[name]] for name in head(table[0])]


def test_page_holds_the_table_and_loads_nothing(tmp_path: Path) -> None:
    text, page = write(tmp_path, run(tmp_path / "a", SUMMARY))
    assert page.texts["td"] == ["anc-cached", *CELLS]
    assert page.loads == []
    assert "<script" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text


def test_page_shows_every_player_the_discriminators_view_and_the_split(tmp_path: Path) -> None:
    text, page = write(
        tmp_path, run(tmp_path / "a", SUMMARY), run(tmp_path / "b", {"name": "plain"}, disc=False)
    )
    titles = [title for title in page.texts["h2"] if title not in ("anc-cached", "plain")]
    assert titles == [
        "Validation error",
        "Loss of the student",
        "Loss of the discriminator",
        "The discriminator's view: anc-cached",
        "Learning rate",
        "Where the time goes",
    ]
    assert "2,310/s" in text
    assert page.texts["figcaption"] == 3 * ["anc-cachedplain"]
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_a_games_health_is_drawn_as_it_was_written(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", SUMMARY)
    train = [(1.0, 3.0, 0.5), (3.0, 1.0, 0.75), (0.0, 0.0, 1.0)]  # pulls of the game and the data, share won
    lines = [
        {"kind": "train", "step": k, "epoch": k, "pull_game": g, "pull_data": d, "won": w}
        for k, (g, d, w) in enumerate(train, 1)
    ]
    val = {"kind": "val", "step": 3, "epoch": 3, "distance": 0.4, "held_won": 0.625, "pull_share": 0.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, val]))
    _, page = write(tmp_path, folder)
    assert {"From the teacher's distribution", "The game's pull", "Told apart"} <= set(page.texts["h2"])
    words = " ".join(page.texts["p"])
    assert "0.4, held-out views told apart 62.5%, the game's pull 75.0%" in words
    shown = [(report_figures.RunFolder("a", {}, [*lines, val], ""), "red")]
    drawn = []
    for draw in (report_figures.draw_pull, report_figures.draw_told_apart, report_figures.draw_distance):
        axes = Figure().subplots()
        draw(axes, shown)
        drawn += [list(line.get_ydata()) for line in axes.lines if line.get_color() == "red"]
    assert drawn == [[0.25, 0.75, 0.0], [0.5, 0.75, 1.0], [0.625], [0.4]]
    game_curves.draw([folder], tmp_path / "curves.svg")
    assert {"a", "epoch"} <= set(re.findall(r">([^<>]+)</text>", (tmp_path / "curves.svg").read_text()))
    with pytest.raises(ValueError, match="plain has no game's measures"):
        game_curves.draw([run(tmp_path / "plain", SUMMARY)], tmp_path / "none.svg")


def test_throughput_bars_are_as_long_as_the_shares(tmp_path: Path) -> None:
    summary = {**SUMMARY, "data_share": 0.25, "teacher_share": 0.5}
    text, _ = write(tmp_path, run(tmp_path / "a", summary))
    bars = text[text.index("Where the time goes") :]
    widths = []
    for colour in ("#2563eb", "#f5a524", "#98a2b3"):
        corners = re.search(rf'd="M ([^"]+?)z\s*" clip-path="[^"]*" style="fill: {colour}', bars)
        assert corners is not None
        xs = [float(x) for x in re.findall(r"([\d.]+) [\d.]+", corners[1])]
        widths.append(max(xs) - min(xs))
    assert [width / sum(widths) for width in widths] == pytest.approx([0.25, 0.25, 0.5], abs=1e-3)


def test_notes_facts_and_configuration_are_shown_as_text(tmp_path: Path) -> None:
    _, page = write(tmp_path, run(tmp_path / "a", {**SUMMARY, "name": "<b>&"}))
    assert page.texts["li"] == ["step 10 bound by <teacher>"]
    assert page.texts["pre"] == ["method:\n  type: anc # <&>\n"]
    assert page.texts["td"][0] == "<b>&"
    assert dict(zip(page.texts["dt"], page.texts["dd"])) == {
        "dataset": "cifar10",
        "epochs": "2",
        "val.top5": "0.997",
        "best.metric": "error_pct",
        "best.value": "7.12",
        "best.steps": "800",
        "best.epoch": "1.5",
        "phases.train_s": "3,700.5",
    }


def test_a_run_going_on_is_shown_with_dashes(tmp_path: Path) -> None:
    folder = run(tmp_path / "going")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    _, page = write(tmp_path, folder)
    # What its configuration and its last evaluation say is known, and no more.
    known = ["going", "stopped", "anc", *"––––––", "11.00 %", *"––––––––"]
    assert page.texts["td"] == known
    assert "Loss of the student" in page.texts["h2"]


def test_same_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [run(tmp_path / name / "anc", {"name": "anc"}) for name in ("first", "second")]
    _, page = write(tmp_path, *folders)
    assert page.texts["td"][:: len(CELLS) + 1] == ["first/anc", "second/anc"]


def test_same_names_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / name / "runs" / "kd", {"name": "kd"}) for name in ("first", "second")]
    labels = [line.split()[0] for line in summary_table(folders).splitlines()[2:]]
    assert labels == [str(folder.resolve()) for folder in folders]


OTHER = {**SUMMARY, "name": "odd"}
ODD = {
    "null": ("summary.json", json.dumps({**OTHER, "val": None, "best": None})),
    "nan": ("summary.json", json.dumps({**OTHER, "wall_s": float("nan"), "macs": float("inf")})),
    "words": ("summary.json", json.dumps({**OTHER, "labels": "some", "wall_s": "long", "data_share": "?"})),
    "lists": ("summary.json", json.dumps({**OTHER, "name": ["a"], "val": [1], "best": [2]})),
    "no summary": ("summary.json", b"\xff\xfe{"),
    "no text": ("metrics.jsonl", b"\xff\xfe\x00\n"),
    "no lines": ("metrics.jsonl", b'[1]\n3\n{"kind":"train"}\n{"step":1}\n{"kind":"note","step":1}\n'),
    "no numbers": (
        "metrics.jsonl",
        b'{"kind":"val","step":3,"epoch":null,"error_pct":1}\n{"kind":"val","step":3,"epoch":1,"error_pct":"x"}\n'
        b'{"kind":"train","step":5,"epoch":1,"lr":"x","student/a":"q","student/b":1,"d_teacher":[1]}\n',
    ),
    "not finite": (
        "metrics.jsonl",
        b'{"kind":"train","step":5,"epoch":1,"lr":NaN,"student/a":NaN,"d_teacher":NaN}\n'
        b'{"kind":"train","step":6,"epoch":2,"lr":1,"student/a":Infinity}\n'
        b'{"kind":"val","step":6,"epoch":2,"error_pct":NaN}\n',
    ),
    "half a game": (
        "metrics.jsonl",
        b'{"kind":"train","step":5,"epoch":1,"pull_game":0,"pull_data":0,"won":1}\n'
        b'{"kind":"train","step":6,"epoch":2,"pull_game":"x","pull_data":1}\n'
        b'{"kind":"train","step":7,"epoch":3,"pull_game":NaN,"pull_data":Infinity,"won":NaN}\n'
        b'{"kind":"val","step":7,"epoch":3,"distance":0.5}\n',
    ),
    "no yaml": ("config.yaml", b"\xd3\x00"),
    "no owner": (".owner", b"\xff\x00"),
}


@pytest.mark.parametrize("what", ODD)
def test_one_odd_run_never_hides_the_others(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = run(tmp_path / "runs" / "sound", SUMMARY)
    odd = run(tmp_path / "runs" / "odd", None if what == "no owner" else OTHER)
    name, text = ODD[what]
    (odd / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    _, page = write(tmp_path, sound.parent)
    one = page.texts["td"].index("anc-cached")
    assert page.texts["td"][one + 1 : one + 1 + len(CELLS)] == CELLS
    assert len(page.texts["td"]) == 2 * (1 + len(CELLS))
    with write_csv([sound.parent], tmp_path / "runs.csv").open(newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} >= {"anc-cached"}
    assert main(["runs", str(sound.parent)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_asking_who_owns_a_folder_neither_takes_nor_gives_it_away(tmp_path: Path) -> None:
    folder = run(tmp_path / "going")
    owner = Owner(folder)
    said = ["host", socket.gethostname(), "pid", str(os.getpid())]
    assert owner_of(folder).split() == said, "this process knows its own"
    # A record lock goes when any descriptor of its file is closed: another process sees whether it is still there.
    asked = "import sys; from pathlib import Path; from fastanc.training.folder import Owner, owner_of\n"
    asked += "print(owner_of(Path(sys.argv[1])))\nOwner(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", asked, str(folder)], capture_output=True, text=True)
    assert other.stdout.split()[:4] == said
    assert "belongs to a run that is under way" in other.stderr
    owner.release()
    (folder / ".owner").write_text("host elsewhere pid 1 since ever")  # of a killed run, kept by another user
    (folder / ".owner").chmod(0o444)
    assert owner_of(folder) == ""


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "photo\udce9", {key: value for key, value in SUMMARY.items() if key != "name"})
    _, page = write(tmp_path, tmp_path / "runs")
    assert page.texts["td"][0] == "photo?"
    with write_csv([tmp_path / "runs"], tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["run"] == "photo?"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} holds no run"):
        summary_table([tmp_path])
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        summary_table([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="name at least one"):
        summary_table([])


def test_a_folder_is_no_page_s_name(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"photos is a folder: name a file in it"):
        write_report([run(tmp_path / "a", SUMMARY)], photos)
    assert [path.name for path in photos.iterdir()] == ["1.jpg"]


def test_a_folder_of_runs_is_all_of_them_each_once(tmp_path: Path) -> None:
    folders = [run(tmp_path / "runs" / name, {**SUMMARY, "name": name}) for name in ("b", "a", "deep/c")]
    (tmp_path / "runs" / "cache" / "x").mkdir(parents=True)
    table = summary_table([tmp_path / "runs", folders[0]]).splitlines()
    assert [line.split()[0] for line in table[2:]] == ["a", "b", "deep/c"]


def test_the_table_as_csv_has_the_values_as_they_were_measured(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "a", SUMMARY)
    run(tmp_path / "runs" / "b")
    with write_csv([tmp_path / "runs"], tmp_path / "made" / "runs.csv").open(newline="") as file:
        finished, stopped = csv.DictReader(file)
    assert finished["run"] == "anc-cached"
    assert float(finished["val.teacher_kl"]) == SUMMARY["val"]["teacher_kl"]
    assert float(finished["phases.train_s"]) == 3700.5
    assert (stopped["run"], stopped["state"], stopped["steps"]) == ("b", "stopped", "20")
    assert stopped["params"] == ""
    write_csv([tmp_path / "runs"], tmp_path / "made" / "runs.csv")  # its own is written over
    (tmp_path / "labels.csv").write_text("image,label\n")
    with pytest.raises(FileExistsError, match="labels.csv exists and is no table of runs"):
        write_csv([tmp_path / "runs"], tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "image,label\n"
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="ends in .csv"):
        write_csv([tmp_path / "runs"], tmp_path / "kept.txt")
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_curve_of_one_point_is_drawn(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", SUMMARY)
    line = (folder / "metrics.jsonl").read_text().splitlines()[0]
    (folder / "metrics.jsonl").write_text(line + "\n")
    text, _ = write(tmp_path, folder)
    card = text[text.index("Loss of the student") : text.index("Learning rate")]
    assert "<use" in card[card.index("line2d") :]  # a marker


def test_runs_are_listed_with_how_far_each_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    run(runs / "done", SUMMARY)
    run(runs / "killed")
    (run(runs / "torn") / "config.yaml").write_text("method: {")
    (runs / "torn" / "metrics.jsonl").write_text('{"kind": "train"')
    going = run(runs / "going")
    held = "import sys, time; from pathlib import Path; from fastanc.training.folder import Owner"
    held += "; owner = Owner(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", held, str(going)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert main(["runs", str(runs)]) == 0
        other.kill()
    lines = {line.split()[0]: re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()}
    assert lines["done"][1:3] == ["finished", "anc"]
    assert lines["going"][1] == "running"
    assert lines["killed"][1] == "stopped"
    assert lines["killed"][5:8] == ["20", "2", "11.00 %"]
    assert lines["torn"][1:6] == ["stopped", *"–––", "0"]
    assert main(["runs", str(runs)]) == 0
    again = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert again["going"] == "stopped", "its owner was killed"
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
