"""A tar of images, a folder of tars, a tar of tars, WebDataset shards: listed by their headers alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastanc.pipelines.index.sources.archive import Members, listed
from fastanc.pipelines.index.sources.listing import Listing, Source
from fastanc.pipelines.tar_file import walk_nested


def list_tars(source: Source) -> Listing:
    """Return what tars hold; raises ValueError where one is damaged."""
    found = Members()
    with ThreadPoolExecutor(8) as pool:
        walks = pool.map(lambda shard: walk_nested(source.base / shard, found.folders), source.files)
        for number, members in enumerate(walks):
            for member in members:
                found.add(member, number, source.base / source.files[number])
    return listed(source, found)
