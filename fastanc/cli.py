"""The `fastanc` command: one word per job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake ends in one sentence and exit code 2."""
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["train"]:
        # The trainer reads its own options: every field of the configuration is one.
        from fastanc.train import main as train_main

        return train_main(args[1:])
    options = _parser().parse_args(args)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("fastanc: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("FASTANC_DEBUG"):
            raise
        print(f"fastanc: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastanc", description="Adversarial network compression.")
    jobs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    jobs.add_parser("train", help="train one student (all options: fastanc train --help)", add_help=False)

    demo = jobs.add_parser("demo", help="compress a teacher on handwritten digits, on any machine")
    demo.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    demo.set_defaults(run=_demo)

    report = jobs.add_parser("report", help="one HTML page and a table about runs")
    report.add_argument("runs", nargs="+", type=Path)
    report.add_argument("--out", type=Path, default=None, help="file to write; none prints the table only")
    report.set_defaults(run=_report)

    export = jobs.add_parser("export", help="write a run's student for use elsewhere")
    export.add_argument("run_dir", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--formats", nargs="+", default=["safetensors", "torch_export"])
    export.set_defaults(run=_export)

    for name, what in (
        ("datasets", "names of data sets"),
        ("networks", "names of networks"),
        ("recipes", "recipes"),
    ):
        jobs.add_parser(name, help=f"list the {what}").set_defaults(run=_names, what=name)

    _index_commands(jobs)
    _cache_commands(jobs)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from fastanc.demo import demo

    demo(options.out)


def _index_commands(j):
    pass


def _cache_commands(j):
    pass


def _report(o):
    pass


def _export(o):
    pass


def _names(o):
    pass
