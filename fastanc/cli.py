"""The `fastanc` command: one word per job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastanc import __version__, commands
from fastanc.arguments import Parser, local_path, within
from fastanc.errors import command, say_repeated

FIELD_WORDS = ("recipe", "config_path", "plugin", "resume", "name")
_FIELDS = "the other words are fields of the configuration, as `fastanc train --help` lists them"
_REGISTERS = "Python file that registers the networks"

_WORKERS = within(1, 1024)
_RATE = within(0, 10**9, float, above=True)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `errors.command`."""
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["train"]:
        return command(lambda: _train(args[1:]), "run it again")
    parser, words = _parser(), _fields_joined(args)
    options, rest = parser.parse_known_args(words)
    say_repeated([word.partition("=")[0] for word in words if word.startswith("--") and word not in rest])
    if rest and not getattr(options, "takes_fields", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.fields = rest
    return command(lambda: options.run(options), options.again)


def _train(args: Sequence[str]) -> int:
    # The trainer reads its own options: every field of the configuration is one.
    from fastanc.train import main as train_main

    return train_main(args)


def _fields_joined(args: list[str]) -> list[str]:
    """Write `--group.field value` as one word, so that argparse takes no value for an argument of its own."""
    joined: list[str] = []
    for word in args:
        before = joined[-1] if joined else ""
        is_field = (
            before.startswith("--") and "=" not in before and ("." in before or before[2:] in FIELD_WORDS)
        )
        if is_field:
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="fastanc", description="Adversarial network compression.")
    parser.add_argument("--version", action="version", version=f"fastanc {__version__}")
    jobs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    about = "train one student; every field of the configuration is an option (train --help)"
    jobs.add_parser("train", help=about, add_help=False)

    demo = _job(jobs, "demo", commands.demo, "compress a teacher on handwritten digits, on any machine")
    demo.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    demo.set_defaults(again="the same command starts it over")

    about = "look at your images and networks, and write a first recipe that fits them"
    first = _job(jobs, "init", commands.first_recipe, about)
    first.add_argument("out", type=Path, help="YAML file to write")
    first.add_argument("--data", required=True, help="a data set's name, or the path of one")
    first.add_argument("--teacher", required=True, help="a network's name, as teacher.name takes it")
    first.add_argument("--weights", help="file of the teacher's weights; none for a name with published ones")
    first.add_argument("--student", required=True, help="a network's name, as student.name takes it")
    first.add_argument("--plugin", help="Python file that registers the networks or the data set")

    report = _job(jobs, "report", commands.report, "a table, and one HTML page, about runs")
    report.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders that hold some")
    report.add_argument("--out", type=Path, help="HTML file to write; without it the table only")
    report.add_argument("--csv", type=Path, help="file to write the table's values to")

    about = "list the runs below a folder: how far each came, and whether it goes on"
    runs = _job(jobs, "runs", commands.runs, about)
    runs.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder that holds them (runs)"
    )

    about = "draw images with their views, as a recipe dresses and mixes them, on one sheet"
    views = _job(jobs, "views", commands.views, about, fields=True)
    views.add_argument("recipe", nargs="?", help="a name or a YAML file, as --recipe takes it")
    views.add_argument("--out", type=Path, required=True, help="PNG file to write")
    views.add_argument("--images", type=within(1, 64), help="rows, evenly spaced over the set (8)")
    views.add_argument("--views", type=within(1, 64), help="columns: views 0, 1, ... of each (6)")

    about = "what compression bought: size, latency and memory of a run's teacher and student on this machine"
    profile = _job(jobs, "profile", commands.profile, about)
    profile.add_argument("run_dir", type=Path, help="folder of a finished run; its profile.json is written")
    profile.add_argument("--plugin", help=f"{_REGISTERS} (the one that the run names)")
    profile.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one by default")
    profile.add_argument(
        "--batches", type=within(1, 2**14), nargs="+", default=[1, 32], help="images of a pass (1 32)"
    )
    profile.add_argument("--threads", type=within(1, 1024), help="of the CPU; torch's number by default")
    profile.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the passes (fp32)"
    )
    profile.add_argument(
        "--seconds",
        type=within(0, 3600, float, above=True),
        default=4.0,
        help="measured for each batch size (4)",
    )

    export = _job(jobs, "export", commands.export, "write a run's student for use elsewhere")
    export.add_argument("run_dir", type=Path, help="folder of a run")
    export.add_argument("out", type=Path, help="folder to write")
    export.add_argument("--best", action="store_true", help="the student of the best evaluation (run.best)")
    export.add_argument("--plugin", help=f"{_REGISTERS} (the one that the run names)")
    export.add_argument(
        "--formats",
        nargs="+",
        default=["safetensors", "torch_export"],
        help="of safetensors, torch_export and onnx (the first two)",
    )
    export.add_argument("--fp16", action="store_true", help="an ONNX program in fp16 too")
    export.add_argument(
        "--int8",
        action="store_true",
        help="an ONNX program in int8 too, calibrated and judged by the run's images",
    )
    export.add_argument(
        "--push", metavar="NAME", help="upload the folder to this repository of the Hugging Face hub"
    )

    about = "index a folder, tar, zip, parquet, MDS or list of images, and name the bad files"
    index = _job(jobs, "index", commands.index, about)
    index.add_argument("source", help="path or URL of what holds the images; SOURCE.index is written")
    index.add_argument("--full", action="store_true", help="decode every image")
    index.add_argument("--refresh", action="store_true", help="index again although an index exists")
    index.add_argument("--workers", type=_WORKERS, help="processes; all cores by default")
    index.add_argument("--labels", type=local_path, help="file of labels for images that have none")
    index.add_argument("--columns", metavar="IMAGE,LABEL", help="columns of a list, of parquet or MDS")
    index.add_argument(
        "--images", type=local_path, metavar="DIR", help="folder that a list's paths are relative to"
    )
    index.add_argument("--class_map", type=local_path, help="JSON or text file that numbers the classes")
    index.add_argument(
        "--synsets", type=local_path, help="file `ID WORDNET_ID` for a devkit's numeric labels"
    )

    about = "write a set of any kind into one plain tar; run it again to go on"
    pack = _job(jobs, "pack", commands.pack, about)
    pack.add_argument("source", help="path or URL of what holds the images")
    pack.add_argument("out", type=Path, help="tar to write")
    pack.add_argument(
        "--short_side", type=within(1, 2**14), help="make larger images so small, pixels; none by default"
    )
    pack.add_argument("--labels", type=local_path, help="file of labels for images that have none")
    pack.add_argument("--columns", metavar="IMAGE,LABEL", help="columns of a list, of parquet or MDS")
    pack.add_argument(
        "--images", type=local_path, metavar="DIR", help="folder that a list's paths are relative to"
    )
    pack.add_argument("--quality", type=within(1, 100), default=90, help="of the JPEGs made smaller (90)")
    pack.add_argument("--workers", type=_WORKERS, help="processes; all cores by default")

    _plan_parser(jobs)
    about = "run a table of a paper: rows x seeds over one cache; run it again to go on"
    study = _job(jobs, "study", commands.study, about, fields=True)
    study.add_argument("study", help="a name (`fastanc studies` lists them) or a YAML file")
    study.add_argument(
        "--scale",
        type=within(0, 1, float, above=True),
        default=1.0,
        help="share of the full schedule and data (1)",
    )
    study.add_argument("--only", action="append", default=[], help="an option of an axis; may be repeated")
    study.add_argument(
        "--seeds", type=within(0, 2**31 - 1), nargs="+", default=[], help="in the place of the study's"
    )
    study.add_argument("--recipe", help="in the place of the study's")
    study.add_argument("--out", type=Path, help="folder of the study; runs/study-NAME by default")

    for name in ("datasets", "networks", "recipes", "methods", "studies"):
        names = _job(jobs, name, commands.names, f"list the {name}")
        names.add_argument("--plugin", help="Python file that registers more of them")
        names.set_defaults(what=name)
    about = 'print what a shell reads to complete these commands and every field: eval "$(fastanc completion bash)"'
    completion = _job(jobs, "completion", lambda options: print(_completion(options.shell)), about)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose completion it is")
    _job(jobs, "version", lambda options: print(f"fastanc {__version__}"), "say which version this is")
    _cache_parsers(jobs)
    return parser


def _job(
    jobs: Any, name: str, run: Callable[[argparse.Namespace], Any], about: str, *, fields: bool = False
) -> argparse.ArgumentParser:
    epilog = _FIELDS if fields else None
    job: argparse.ArgumentParser = jobs.add_parser(name, help=about, description=about, epilog=epilog)
    job.set_defaults(takes_fields=fields, run=run, again="run the same command again to go on")
    return job


def _completion(shell: str) -> str:
    from fastanc.completion import script

    return script(_parser(), shell)


def _plan_parser(jobs: Any) -> None:
    about = "what a recipe asks of a cluster: bytes, cores, and what bounds it"
    plan = _job(jobs, "plan", commands.plan, about, fields=True)
    plan.add_argument("--channels", type=int, choices=(1, 3), default=3, help="of an image (3)")
    plan.add_argument(
        "--measure", action="store_true", help="take this machine's rates, measured for some seconds"
    )
    for name, kind, default, says in (
        ("gpus", within(1, 10**6), 8, "in all"),
        ("gpus_per_node", within(1, 1024), 8, "in each machine"),
        ("cores_per_node", within(1, 10**5), 128, "in each machine"),
        ("classes", within(1, 10**5), 1000, "of the data set"),
        ("tflops", _RATE, 100, "10^12 operations/s a GPU sustains in training"),
        ("decoded_per_s", _RATE, 1000, "images a core decodes in a second"),
        ("storage_gb_per_s", _RATE, 5, "10^9 bytes/s of a node's storage"),
        ("network_gb_per_s", _RATE, 25, "10^9 bytes/s of a node's network"),
        ("image_bytes", within(0, 10**9), 110_000, "of a stored image; 0 decodes none"),
    ):
        plan.add_argument(f"--{name}", type=kind, default=default, help=f"{says} ({default})")


def _cache_parsers(jobs: Any) -> None:
    about = "build, look at, verify, prune and move teacher caches"
    words = jobs.add_parser("cache", help=about, description=about).add_subparsers(
        required=True, metavar="JOB"
    )

    def job(name: str, about: str, *, fields: bool = False) -> argparse.ArgumentParser:
        return _job(words, name, lambda options: commands.cache(name, options), about, fields=fields)

    about = "run the teacher on every view; options are a recipe's fields (--recipe NAME ...)"
    build = job("build", about, fields=True)
    build.add_argument(
        "--students", type=within(1, 10**6), default=1, help="students to come, for the break-even"
    )
    job("info", "what a cache holds").add_argument("path", type=Path, help="a cache, or a folder of caches")
    about = "check every row; with --teacher N run the teacher again on N rows"
    verify = job("verify", about, fields=True)
    verify.add_argument("path", type=Path, nargs="?", help="a cache; none takes the recipe's")
    verify.add_argument(
        "--teacher", type=within(0, 10**9), default=0, metavar="N", help="rows to compute again"
    )
    verify.add_argument("--drop", action="store_true", help="remove what is damaged, for the next build")
    prune = job("prune", "drop views, and files of dead writers")
    prune.add_argument("path", type=Path, help="a cache")
    prune.add_argument("--views", type=within(0, 10**9), nargs="*", default=[], help="views to drop whole")
    prune.add_argument(
        "--stray_age_s", type=within(0, 10**9, float), default=3600, help="age of a dead writer's file"
    )
    export = job("export", "write a cache into one tar (or a folder)")
    export.add_argument("path", type=Path, help="a cache")
    export.add_argument("out", type=Path, help="tar or folder to write")
    imported = job("import", "add an exported cache to a folder of caches")
    imported.add_argument("path", type=Path, help="what cache export wrote")
    imported.add_argument("cache_dir", type=Path, help="folder that holds caches, as teacher.cache_dir")


if __name__ == "__main__":
    sys.exit(main())
