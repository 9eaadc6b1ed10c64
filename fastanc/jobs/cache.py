"""The jobs of `fastanc cache`: from a configuration or a folder to the store's own functions."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from fastanc.cache.identity import IDENTITY
from fastanc.cache.moving import export_cache, import_cache
from fastanc.cache.store import Store
from fastanc.errors import MISTAKE, explained, sentence
from fastanc.parsing import parse
from fastanc.quoting import brief, counted
from fastanc.teacher.build import build_cache, verify_teacher
from fastanc.training.assemble import open_bench
from fastanc.training.assemble_compiled import compile_bench
from fastanc.training.inputs import input_note

_OTHER = 0.1
"""Of a row's largest value: rounding of any kind stays below, another teacher, view or image differs by about 1."""


def _build(options: Namespace) -> None:
    config = parse(options.fields, front=True)
    with explained(batch=config.data.batch, image_px=config.data.image_px):
        bench = open_bench(config, create=True)
        said = compile_bench(config, bench.source, bench.teacher)
        if bench.accelerator.is_main_process:
            if bench.source.plan_source:
                print(input_note(bench.source))
            if said:
                print(said)
            if bench.source.views.mixing is not None:
                print("mixed pictures take no more room: a row is one view of one image, whatever is in it")
        built = build_cache(
            bench.store,
            range(bench.views),
            bench.batches,
            bench.teacher.online(bench.source.device),
            rank=bench.source.rank,
            world=bench.source.world,
            wait=bench.accelerator.wait_for_everyone,
            arranged=bench.source.views.arranged,
            epochs=bench.epochs,
            students=options.students,
        )
    if bench.accelerator.is_main_process:
        rate = built.images / max(built.seconds, 1e-9)
        left = f"; {built.missing:,} rows are still missing" if built.missing else ""
        print(f"{bench.store.path}: {built.images:,} rows in {built.seconds:,.1f} s ({rate:,.0f}/s){left}")


def _info(options: Namespace) -> int:
    path: Path = options.path
    folders = [path] if (path / IDENTITY).is_file() else sorted(p.parent for p in path.glob(f"*/{IDENTITY}"))
    if not folders:
        raise FileNotFoundError(
            f"there is no cache in {path}: name a cache's folder, or the folder of caches"
        )
    failed = 0
    for folder in folders:
        try:
            print(json.dumps(Store.at(folder).info(), indent=1))
        except BrokenPipeError:  # nobody reads on
            raise
        except (ValueError, OSError) as error:
            if len(folders) == 1:
                raise
            print(f"fastanc: {brief(sentence(error))}", file=sys.stderr)
            failed += 1
    return MISTAKE if failed else 0


def _verify(options: Namespace) -> int:
    if options.path is None or options.teacher:
        bench = open_bench(parse(options.fields, front=True), create=False)
        store = bench.store
    else:
        store = Store.at(options.path)
    damage = other = False
    rows = missing = 0
    for view in store.verify(drop=options.drop, progress=True):
        print(f"view {view.view}: {view.right:,} rows, {view.missing:,} missing")
        rows, missing = rows + view.right, missing + view.missing
        for field, images in view.wrong.items():
            some = ", ".join(map(str, images[:4])) + (", ..." if len(images) > 4 else "")
            done = "dropped" if options.drop else "add --drop, then run `fastanc cache build`"
            print(
                f"view {view.view}: the {field} of {len(images):,} images ({some}) do not fit their checksums: {done}"
            )
            damage = True
    if options.teacher:
        for deviation in verify_teacher(
            store, bench.teacher.online(bench.source.device), bench.batches, options.teacher
        ):
            print(
                f"{deviation.field}: largest difference {deviation.absolute:.3g}, {deviation.relative:.2g} of its row"
                f" (view {deviation.view}, image {deviation.image})"
            )
            if not deviation.relative <= _OTHER:
                print(
                    f"{store.path}: the {deviation.field} of its rows are not this teacher's: remove the cache, then"
                    " run `fastanc cache build`"
                )
                other = True
    if not damage:
        absent = f", {missing:,} are missing: `fastanc cache build` computes them" if missing else ""
        print(f"{store.path}: the {rows:,} rows that are there fit their checksums{absent}")
    return 1 if damage or other else 0


def _prune(options: Namespace) -> None:
    removed = Store.at(options.path).prune(options.views, stray_age_s=options.stray_age_s)
    print(f"removed {counted(len(removed), 'view')} and unfinished files")


def _export(options: Namespace) -> None:
    if options.out.suffix == ".tar" and options.out.exists():
        raise FileExistsError(f"{options.out} exists: remove it first, or choose another name")
    print(export_cache(Store.at(options.path), options.out))


def _import(options: Namespace) -> int:
    done = import_cache(options.path, options.cache_dir)
    print(
        f"{done.store.path}: {done.rows:,} rows came"
        + (f", {done.wrong:,} did not fit their checksums" if done.wrong else "")
    )
    return 1 if done.wrong else 0


JOBS: dict[str, Callable[[Namespace], int | None]] = {
    "build": _build,
    "info": _info,
    "verify": _verify,
    "prune": _prune,
    "export": _export,
    "import": _import,
}
