"""The jobs of `fastanc cache`: from a configuration or a folder to the store's own functions."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastanc.cache.identity import IDENTITY
from fastanc.cache.moving import export_cache, import_cache
from fastanc.cache.store import Store
from fastanc.config import Config
from fastanc.parsing import parse
from fastanc.teacher.build import build_cache, verify_teacher
from fastanc.teacher.online import Online
from fastanc.training import assemble, inputs
from fastanc.training.processes import make_accelerator


class _Bench:
    """Teacher, input and store of a configuration, without a student."""

    def __init__(self, config: Config, create: bool):
        self.accelerator = make_accelerator(batch=config.data.batch)
        self.config = config
        self.input = inputs.open_input(config.data, config.run.seed, self.accelerator)
        network = assemble.build_teacher_network(config, self.input.train)
        self.store = assemble.open_store(config, self.input, network, create=create)
        self.online: Online = assemble.open_online(config, self.input, network)
        self.batches = partial(self.input.picked, max(1, config.data.batch // self.input.world))


def _build(options: Namespace) -> None:
    config = parse(options.fields)
    bench = _Bench(config, create=True)
    views = config.data.views or config.schedule.epochs
    built = build_cache(
        bench.store,
        range(views),
        bench.batches,
        bench.online,
        rank=bench.accelerator.process_index,
        world=bench.accelerator.num_processes,
        wait=bench.accelerator.wait_for_everyone,
        epochs=config.schedule.epochs,
        students=options.students,
    )
    if bench.accelerator.is_main_process:
        print(f"{bench.store.path}: {built}")


def _info(options: Namespace) -> None:
    path: Path = options.path
    folders = [path] if (path / IDENTITY).is_file() else sorted(p.parent for p in path.glob(f"*/{IDENTITY}"))
    if not folders:
        raise FileNotFoundError(
            f"there is no cache in {path}: name a cache's folder, or the folder of caches"
        )
    for folder in folders:
        print(json.dumps(Store.at(folder).info(), indent=1))


def _verify(options: Namespace) -> int:
    if options.path is None or options.teacher:
        bench = _Bench(parse(options.fields), create=False)
        store = bench.store
    else:
        store = Store.at(options.path)
    damage = store.verify(drop=options.drop, progress=True)
    for item in damage:
        print(f"view {item.view}, {item.shard}: {item.reason}")
    if options.teacher:
        for deviation in verify_teacher(store, bench.online, bench.batches, options.teacher):
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
