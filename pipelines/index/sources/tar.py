"""A tar of images, a folder of tars, a tar of tars, WebDataset shards: listed by their headers alone."""

from __future__ import annotations

from fastanc.pipelines.anywhere import threads
from fastanc.pipelines.index.sources.archive import Members, is_label, listed
from fastanc.pipelines.index.sources.listing import Listing, Source
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.tar_file import walk_nested

_REMOTE_THREADS = 32
"""Tars whose headers are read at once, each waiting for a store most of the time."""


def list_tars(source: Source) -> Listing:
    """Return what tars hold; raises ValueError where one is damaged."""
    found = Members()
    remote = isinstance(source.base, RemotePath)
    wanted, number = (is_label, _REMOTE_THREADS) if remote else (None, 8)
    with threads(number) as pool:
        walks = pool.map(lambda shard: walk_nested(source.base / shard, found.folders, wanted), source.files)
        for number, members in enumerate(walks):
            for member in members:
                found.add(member, number, source.base / source.files[number])
    return listed(source, found)
