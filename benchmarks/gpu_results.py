"""`benchmarks.gpu_check --results`: the trainings and rates that a GPU is wanted for, the most wanted first.

Each is begun only where its estimate, less what an earlier call has done of it, fits what is left; one that is ended
saves itself, and the next call goes on with it. The estimates are for one H100 and have not been measured yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.checkout import ROOT
from benchmarks.gpu_rows import FEW, Row, begin, row

RUNS = ROOT / "runs" / "gpu-day"
"""What is resumed lies here, outside of git."""
START_S = 30.0
"""Until a process trains: imports, the first batch, compiling."""
GRACE_S = 30.0
"""In which a training that is ended saves itself."""


class Job(NamedTuple):
    """Something to find out, with the seconds that it takes on one H100, estimated."""

    run: Callable[[bool], Iterator[Row]]
    estimate_s: float
    done: Callable[[], float] = lambda: 0.0
    """Which share of it is done."""


def needed_s(job: Job) -> float:
    """Return the seconds until a job is finished; 0 where it is."""
    share = job.done()
    return 0.0 if share >= 1 else START_S + job.estimate_s * (1 - share)


def share_of(folder: Path) -> float:
    """Return the share of its epochs that a run of a study has behind it, 1 when it is finished."""
    from fastanc.parsing import parse
    from fastanc.training.folder import read_summary
    from fastanc.training.metrics import read_metrics

    if not (folder / "metrics.jsonl").is_file() or not (folder / "config.yaml").is_file():
        return 0.0
    if read_summary(folder) is not None:
        return 1.0
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
    epochs = parse(["--config_path", str(folder / "config.yaml")]).schedule.epochs
    return min(0.99, lines[-1]["epoch"] / epochs) if lines else 0.0


def study_row(study: str, name: str, needs: Callable[[], str | None], fields: Sequence[str]) -> Job:
    """Return the job of one row of a study."""
    folder = RUNS / study

    def run(rehearse: bool) -> Iterator[Row]:
        from benchmarks.studies import rows_of
        from fastanc.cli import main
        from fastanc.errors import SAVED

        lacking = needs()
        if lacking:
            yield row(name, f"needs {lacking}")
            return
        out = RUNS / f"{study}-rehearsed" if rehearse else folder
        tiny = ["--scale", "0.0001", "--run.max_steps", "2", "--run.eval_every", "0", "--data.batch", "16"]
        begin(f"{study}, {name}")
        words = ["study", study, "--only", name, "--out", str(out), *(tiny if rehearse else []), *fields]
        code = main([word.replace("FASTANC_DATA", os.environ["FASTANC_DATA"]) for word in words])
        # The study's page may fail after its rows, for want of matplotlib.
        table = rows_of(out) if (out / "table.json").is_file() else []
        found = [each for each in table if each["row"] == name]
        if not found:
            later = "ended in time: the next call goes on with it"
            yield row(name, later if code == SAVED else "FAILED: see the output")
        for each in found:
            says = f"error {each['error_pct']:.2f} %, paper {each['paper']} %, {each['wall_s']:.0f} s"
            yield row(name, says, error_pct=each["error_pct"], paper_pct=each["paper"])

    return Job(run, ESTIMATES_S[study, name], lambda: share_of(folder / f"{name}-seed0"))


def throughput(student: str, rehearse: bool) -> Iterator[Row]:
    """Real runs of the public entry on packed images: supervised, and ANC from the cache."""
    import tempfile

    from benchmarks import sources
    from benchmarks.end_to_end import real_images
    from fastanc.parsing import parse
    from fastanc.pipelines.index.pack import pack

    size = ["--data.batch", "4", "--data.image_px", "32"] if rehearse else ["--data.batch", "256"]
    teacher = "torchvision:resnet18" if rehearse else "torchvision:resnet152"
    fast = (
        []
        if rehearse
        else ["--run.precision", "bf16", "--run.compile", "true", "--teacher.precision", "bf16"]
    )
    steps = 5 if rehearse else 200
    with tempfile.TemporaryDirectory() as place:
        begin("packing the images")
        images = real_images(Path(place), copies=1 if rehearse else 28, every=FEW if rehearse else 1)
        pack(images, Path(place) / "packed.tar", short_side=256, progress=False)
        words = [
            *("--recipe", "own_data", "--data.name", str(Path(place) / "packed.tar"), "--data.views", "1"),
            *("--teacher.name", teacher, "--teacher.weights", "random", *size, *fast),
            *("--student.name", f"torchvision:{student}", "--schedule.epochs", "100"),
        ]
        found = {}
        for source in ("supervised", "filling", "cached"):
            begin(f"{student}, {source}")
            many = sources.steps_to_fill(parse(words)) if source == "filling" else steps
            found[source] = sources.measure_once(
                source, words, many, Path(place) / "runs", Path(place) / "cache"
            )
            yield row(
                f"{student}, {source}",
                f"data {found[source]['data_share']:.3f} of the time, teacher {found[source]['teacher_share']:.3f}",
                images_per_s=found[source]["images_per_s"],
                ratio=found[source]["images_per_s"] / found["supervised"]["images_per_s"],
            )


def _lacks(*names: str) -> str | None:
    """Return the first file of FASTANC_DATA that is missing."""
    root = os.environ.get("FASTANC_DATA", "")
    missing = [name for name in names if not root or not (Path(root) / name).exists()]
    return f"{missing[0]} in FASTANC_DATA" if missing else None


def _lacks_fashion() -> str | None:
    from fastanc.pipelines.catalogue import DEBIAN_FASHION
    from fastanc.pipelines.small_sets import fashion_folder

    roots = [DEBIAN_FASHION, Path(os.environ.get("FASTANC_DATA", "."))]
    return None if any(map(fashion_folder, roots)) else "Fashion-MNIST in FASTANC_DATA"


_WEIGHTS = "weights/resnet56-4bfd9763.th"
_CIFAR = partial(_lacks, "cifar-10-batches-py", _WEIGHTS)
_METHODS = ("anc", "supervised", "l2", "kd")
ESTIMATES_S = {  # steps, times 5 ms of the host a step of a game, 4 ms of one without
    **{("cifar10_full", name): 330.0 if name == "anc" else 260.0 for name in _METHODS},
    ("fashion_full", "anc"): 520.0,  # trains the teacher too
    **{("fashion_full", name): 230.0 for name in _METHODS[1:]},
}
JOBS: dict[str, Job] = {
    "rate resnet18": Job(partial(throughput, "resnet18"), 240),
    "rate resnet50": Job(partial(throughput, "resnet50"), 270),
    **{
        f"cifar10 {name}": study_row(
            "cifar10_full", name, _CIFAR, ["--teacher.weights", f"FASTANC_DATA/{_WEIGHTS}"]
        )
        for name in _METHODS
    },
    **{f"fashion {name}": study_row("fashion_full", name, _lacks_fashion, []) for name in _METHODS},
}
"""The most wanted first."""


def results(
    jobs: dict[str, Job], left_s: Callable[[], float], start: Callable[[str, float], None]
) -> Iterator[tuple[str, Row]]:
    """Start every job that fits the seconds left; yield a row for each that is left out or was finished before."""
    for name, job in jobs.items():
        wanted_s = needed_s(job)
        if wanted_s > left_s():
            says = f"left out: it needs about {wanted_s:.0f} s, {max(0, left_s()):.0f} s are left"
            yield name, row("all", says)
        elif wanted_s == 0:
            yield name, row("all", "finished before")
        else:
            start(name, left_s())
