"""What each word of the `fastanc` command does.

Heavy modules are imported inside the functions, so that `fastanc --help` answers at once.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def cache(job: str, options: argparse.Namespace) -> int | None:
    """Do one of the jobs of `fastanc cache`."""
    from fastanc.jobs import cache as cache_jobs

    return cache_jobs.JOBS[job](options)


def demo(options: argparse.Namespace) -> None:
    """Train the demonstration."""
    from fastanc.jobs import demo as job

    job.demo(options.out)


def first_recipe(options: argparse.Namespace) -> None:
    """Write a first recipe."""
    from fastanc.jobs.first_recipe import write_recipe

    given = (options.data, options.teacher, options.weights, options.student, options.plugin)
    print(write_recipe(options.out, *given))


def runs(options: argparse.Namespace) -> None:
    """List runs."""
    from fastanc.jobs.run_list import describe, find_runs, look_at

    print(describe([look_at(run) for run in find_runs(options.folder)], options.folder))


def profile(options: argparse.Namespace) -> None:
    """Measure a run's networks side by side."""
    from fastanc.jobs.gains import profile_run
    from fastanc.jobs.gains_table import describe

    found = profile_run(
        options.run_dir,
        device=options.device,
        batches=sorted(set(options.batches)),
        threads=options.threads,
        precision=options.precision,
        seconds=options.seconds,
        plugin=options.plugin,
    )
    print(describe(found))


def plan(options: argparse.Namespace) -> None:
    """Print what a recipe asks of a cluster."""
    from fastanc.jobs.measure import as_measured
    from fastanc.jobs.plan import Cluster, describe, load_of
    from fastanc.parsing import parse
    from fastanc.training.assemble_networks import sketch

    config = parse(options.fields, front=True)
    networks = sketch(config, classes=options.classes, channels=options.channels)
    load = load_of(networks, image_bytes=options.image_bytes)
    cluster = Cluster(
        gpus=options.gpus,
        gpus_per_node=options.gpus_per_node,
        cores_per_node=options.cores_per_node,
        flop_per_s=options.tflops * 1e12,
        decoded_per_s=options.decoded_per_s,
        storage_bytes_per_s=options.storage_gb_per_s * 1e9,
        network_bytes_per_s=options.network_gb_per_s * 1e9,
    )
    if options.measure:
        load, cluster = as_measured(config, networks, load, cluster)
    print(describe(load, cluster))


def report(options: argparse.Namespace) -> None:
    """Print a table of runs, and write the page where one is asked for."""
    from fastanc.jobs.report import LINE, summary_table, write_csv, write_report

    print(summary_table(options.runs, max(LINE, shutil.get_terminal_size((LINE, 0)).columns)))
    if options.csv is not None:
        print(write_csv(options.runs, options.csv))
    if options.out is not None:
        print(write_report(options.runs, options.out))


def views(options: argparse.Namespace) -> None:
    """Draw the sheet of views."""
    from fastanc.parsing import parse

    recipe = [] if options.recipe is None else [f"--recipe={options.recipe}"]
    config = parse([*recipe, *options.fields], front=True, images_only=True)
    from fastanc.jobs.views_sheet import check_place, write_views
    from fastanc.training.assemble import open_images

    check_place(options.out)
    print(write_views(open_images(config), options.out, options.images, options.views))


def study(options: argparse.Namespace) -> None:
    """Run a study."""
    from fastanc.jobs.study import run_study
    from fastanc.jobs.study_file import chosen, load

    scaled = "" if options.scale == 1 else f"-scale{options.scale:g}"
    out = options.out or Path("runs") / f"study-{Path(options.study).stem}{scaled}"
    study = chosen(load(options.study), options.only, options.seeds, options.recipe, options.fields)
    print(run_study(study, out, options.scale, options.fields))


def export(options: argparse.Namespace) -> None:
    """Write a run's student."""
    from fastanc.jobs.export import Extras, export_run
    from fastanc.parsing import import_plugin, plugin_of

    if plugin := options.plugin or plugin_of(options.run_dir / "config.yaml"):
        import_plugin(plugin)
    extras = Extras(fp16=options.fp16, int8=options.int8, push=options.push, best=options.best)
    for kind, path in export_run(options.run_dir, options.out, options.formats, extras).items():
        print(f"{kind}: {path}")


def index(options: argparse.Namespace) -> None:
    """Index a source."""
    from fastanc.pipelines.index.build import build_index, index_path, summary, workers_of
    from fastanc.pipelines.remote_path import RemotePath, path_of
    from fastanc.pipelines.source_options import SourceOptions

    source, workers = path_of(options.source), workers_of(options.workers)
    out = index_path(source)
    if options.refresh:
        out.unlink(missing_ok=True)
    index = build_index(
        source,
        SourceOptions(
            labels=options.labels,
            synsets=options.synsets,
            columns=options.columns,
            images=options.images,
            class_map=options.class_map,
        ),
        out=out,
        workers=workers,
        full=options.full,
    )
    print(summary(index, out))
    if isinstance(source, RemotePath):
        print(
            f"{out} is written: training reads local disks, so copy {source} there under its own name, and give"
            f" {index.source}"
        )


def pack(options: argparse.Namespace) -> None:
    """Write a set into a tar."""
    from fastanc.pipelines.index import pack as job
    from fastanc.pipelines.source_options import SourceOptions

    print(
        job.pack(
            options.source,
            options.out,
            SourceOptions(columns=options.columns, images=options.images, labels=options.labels),
            short_side=options.short_side,
            quality=options.quality,
            workers=options.workers,
        )
    )


def names(options: argparse.Namespace) -> None:
    """Print the names of one kind, with those of a plugin."""
    if options.plugin:
        from fastanc.parsing import import_plugin

        import_plugin(options.plugin)
    if options.what == "datasets":
        from fastanc.pipelines.catalogue import describe_names

        print(describe_names())
    elif options.what == "networks":
        from fastanc.models.zoo import describe_names as networks

        for name, about in networks():
            print(f"{name:28}{about}")
    elif options.what == "studies":
        from fastanc.jobs.study_file import study_names

        print("\n".join(study_names()))
    else:
        from fastanc.parsing import method_names, recipe_names

        print("\n".join(recipe_names() if options.what == "recipes" else method_names()))
