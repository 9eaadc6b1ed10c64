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
from fastanc.teacher.build import build_cache, verify_teacher
from fastanc.training.assemble import open_bench


def _build(options: Namespace) -> None:
    config = parse(options.fields)
    with explained(batch=config.data.batch, image_px=config.data.image_px):
        bench = open_bench(config, create=True)
        built = build_cache(
            bench.store,
            range(bench.views),
            bench.batches,
            bench.teacher.online(bench.source.device),
            rank=bench.source.rank,
            world=bench.source.world,
            wait=bench.accelerator.wait_for_everyone,
            epochs=bench.epochs,
            students=options.students,
        )
    if bench.accelerator.is_main_process:
        print(f"{bench.store.path}: {built}")


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
        except (ValueError, OSError) as error:
            if len(folders) == 1:
                raise
            print(f"fastanc: {sentence(error)}", file=sys.stderr)
            failed += 1
    return MISTAKE if failed else 0


def _verify(options: Namespace) -> int:
    if options.path is None or options.teacher:
        bench = open_bench(parse(options.fields), create=False)
        store = bench.store
    else:
        store = Store.at(options.path)
    damage = store.verify(drop=options.drop, progress=True)
    for item in damage:
        kept = "" if item.told else "; nothing can be told of it, so --drop leaves it"
        print(f"view {item.view}, {item.shard}: {item.reason}{kept}")
    if options.teacher:
        for deviation in verify_teacher(
            store, bench.teacher.online(bench.source.device), bench.batches, options.teacher
        ):
            print(deviation)
    if not damage:
        print(f"{store.path}: every shard is what was committed")
    return 1 if damage else 0


def _prune(options: Namespace) -> None:
    removed = Store.at(options.path).prune(options.views, stray_age_s=options.stray_age_s)
    print(f"removed {len(removed)} files")


def _export(options: Namespace) -> None:
    print(export_cache(Store.at(options.path), options.out))


def _import(options: Namespace) -> None:
    print(import_cache(options.path, options.cache_dir).path)


JOBS: dict[str, Callable[[Namespace], int | None]] = {
    "build": _build,
    "info": _info,
    "verify": _verify,
    "prune": _prune,
    "export": _export,
    "import": _import,
}
