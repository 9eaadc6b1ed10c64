"""One pass over a set's files: the index that every run needs, and what it leaves out, with reasons.

What is decided of each kind of file (the words are those of the `.rejected.tsv` beside the index):

| file | decision |
| --- | --- |
| JPEG: baseline, progressive, grey, CMYK, with junk after its end, MPO | accepted (CMYK, MPO noted) |
| PNG, BMP, WebP of at most 8 bits, whatever the file's name says | accepted, noted; alpha is dropped |
| EXIF rotation | accepted, noted; size and boxes are those of the unrotated pixels |
| empty; not an image; cut inside its header; no end-of-image marker; no image data | rejected: ends a run |
| GIF, TIFF, AVIF, PPM, JPEG 2000; 16-bit PNG; 12-bit, arithmetic-coded, lossless JPEG | rejected |
| too many pixels; broken link; pipe; in a tar a link, a sparse file, a name with `..` | rejected |
| in a tar an earlier member of the same name; a second image of a WebDataset key | rejected |
| an image outside of the class folders | rejected |
| bytes overwritten in a JPEG's tables or scans | found by `full` where the decoder notices, else by the CRC |

DALI 2.4 ends the process on several of these, so an index is mandatory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastanc.files import make_folder, sweep, write_bytes
from fastanc.pipelines.anywhere import joined
from fastanc.pipelines.index.changes import asked_of, base_of, digests_of, left_out, unchanged
from fastanc.pipelines.index.class_map import read_class_map
from fastanc.pipelines.index.class_numbers import few_of, number_labels, thin_classes
from fastanc.pipelines.index.image_check import Look, look_at
from fastanc.pipelines.index.joined import is_joined, open_joined
from fastanc.pipelines.index.labels import read_labels
from fastanc.pipelines.index.limits import MOST_WORKERS, whole_number
from fastanc.pipelines.index.origin import Origin, OtherFormat
from fastanc.pipelines.index.sources import Candidate, Label, Listing, check_class_folders, list_source
from fastanc.pipelines.index.sources.listing import OUTSIDE
from fastanc.pipelines.index.table import Index, make_index
from fastanc.pipelines.index.workers import Journal, default_workers, in_order
from fastanc.pipelines.places import beside
from fastanc.pipelines.remote_headers import watched
from fastanc.pipelines.remote_path import RemotePath, forget, path_of
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.source_path import local_copy, local_place
from fastanc.quoting import counted

__all__ = [
    "Index",
    "build_index",
    "index_path",
    "open_index",
    "rejected_path",
    "summary",
    "workers_of",
    "write_rejected",
]

_CHUNK = 256
_FEW = 8  # chunks that are done before another process has started


def index_path(source: Path) -> Path:
    """Return where a source's index lies: beside it, or in the cache folder where that cannot be written."""
    return beside(source, ".index")


def rejected_path(out: Path) -> Path:
    """Return where the list of rejected files of the index `out` lies."""
    return out.with_name(out.name.removesuffix(".index") + ".rejected.tsv")


def open_index(
    source: Path, options: SourceOptions = PLAIN, *, found: SourceOptions = PLAIN, renew: bool = False
) -> Index:
    """Return a source's index, built at first use; of several processes one builds and the others wait.

    `found` are files of labels that were not asked for: they count where the source has no labels of its own.

    One process of a machine lists the source again: raises ValueError where it is no longer what was indexed
    (`changes.unchanged`), or makes the index anew where `renew` says so. That is done, too, where labels have come
    to images that had none, and where another version of fastanc wrote the index.
    """
    path = index_path(source)
    if is_joined(source):
        _check_plain(source, options)
        return open_joined(source, path, open_index, partial(_finished, path), renew=renew)
    try:
        if (finished := _finished(path)) is None:
            return build_index(source, options, found=found, keep=True)
        index = finished
        if os.environ.get("LOCAL_RANK", "0") == "0":
            index = unchanged(index, source, path, options)
    except ValueError:
        if not renew:
            raise
        return build_index(source, options, found=found)
    if (options.labels or found.labels) is not None and index.labels is None:
        return build_index(source, options, found=found)
    return index


def build_index(
    source: Path,
    options: SourceOptions = PLAIN,
    *,
    found: SourceOptions = PLAIN,
    out: Path | None = None,
    workers: int | None = None,
    full: bool = False,
    progress: bool = True,
    classes: Sequence[str] | None = None,
    keep: bool = False,
) -> Index:
    """Read every image of a source once; write its index and the list of rejected files.

    Killed at any moment, the next call goes on from the journal beside `out` (`index_path(source)`).
    `options` says how the source is read, `found` where labels may lie that it lacks; `full` decodes every image;
    `classes` fixes the numbering; `keep` returns an index that another process finished in the meantime.
    """
    source, workers = path_of(source), workers_of(workers)
    forget()
    out = Path(out) if out is not None else index_path(source)
    if is_joined(source):
        _check_plain(source, options)
        if full:
            raise ValueError(f"{source} names several sources: index each of them with --full")
        open_part = partial(_built, workers=workers, progress=progress)
        return open_joined(source, out, open_part, partial(_finished, out, say=True), renew=True)
    with watched(source, progress):
        listing = list_source(source, options)
    if options.labels is None and not any(c.label is not None for c in listing.candidates):
        options = replace(options, labels=found.labels, synsets=options.synsets or found.synsets)
    texts, remarks = _label_texts(listing, options)
    folders = listing.classes if options.labels is None else None
    if options.labels is None:
        check_class_folders(source, listing)
    if options.class_map is not None:
        classes = read_class_map(options.class_map)
    numbers, classes = number_labels(texts, classes or folders, source)
    origin = Origin(
        stamp=listing.stamp,
        folders=listing.folders,
        asked=asked_of(options),
        texts=[
            *digests_of(listing.texts, lambda path: local_copy(source, path)),
            *digests_of(filter(None, [options.labels, options.class_map])),
        ],
        base=base_of(source, listing.base),
        numbered=bool(texts) and isinstance(texts[0], int),
        remarks=[*_passed(listing), *listing.remarks, *remarks],
    )
    make_folder(out.parent)
    stamp = f"{listing.stamp} full={full} chunk={_CHUNK} {','.join(Look._fields)}"
    journal = Journal(out.with_name(f"{out.name}.journal"), stamp)
    if keep and (finished := _finished(out, say=True)) is not None:
        journal.remove()
        return finished
    sweep(out.parent, out.name)  # only who holds the journal writes there
    try:
        looks = _look_at_all(listing, journal, workers, full, progress)
        _check_unchanged(listing)
        index, rejected = _assemble(source, listing, looks, numbers, classes, origin)
        write_rejected(rejected_path(out), rejected)
        index.save(out)
    except ValueError:  # other files are wanted, which another journal would be of
        journal.remove()
        raise
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return index


def _built(part: Path, *, workers: int, progress: bool) -> Index:
    """The index of a part, made where there is none."""
    if _finished(index_path(part)) is None:
        return build_index(part, workers=workers, progress=progress, keep=True)
    return open_index(part)


def _check_plain(source: Path, options: SourceOptions) -> None:
    if options != PLAIN:
        raise ValueError(f"{source} names several sources: index each of them with the options that it needs")


def _finished(path: Path, *, say: bool = False) -> Index | None:
    """The index that lies there; None where there is none, or one of another version, which is said."""
    try:
        return Index.load(path)
    except FileNotFoundError:
        return None
    except OtherFormat:
        if say:
            tqdm.write(f"{path} is of another version of fastanc: it is made anew", file=sys.stderr)
        return None


def workers_of(given: int | None) -> int:
    """Return the number of processes that is asked for, by default all cores; raises ValueError out of its range."""
    return default_workers() if given is None else whole_number("workers", given, MOST_WORKERS)


def _label_texts(listing: Listing, options: SourceOptions) -> tuple[list[Label], list[str]]:
    """Return the label of every candidate, and what is to be said about the label file."""
    if options.labels is None:
        return [candidate.label for candidate in listing.candidates], []
    names = [candidate.name for candidate in listing.candidates]
    found, remarks = read_labels(options.labels, names, options.synsets)
    return list(found), remarks


def _passed(listing: Listing) -> list[str]:
    names, outside = sorted(listing.passed), sum(why == OUTSIDE for _, why in listing.rejected)
    remarks = [f"passed over: {few_of(names)}"] if names else []
    if outside:
        remarks.append(
            f"images beside the class folders are left out ({outside:,} of them): put them into one, or all images"
            " into one folder"
        )
    return remarks


def _look_at_all(listing: Listing, journal: Journal, workers: int, full: bool, progress: bool) -> list[Look]:
    """Return a look for every candidate; chunks that the journal holds are not read again."""
    candidates = listing.candidates
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i].file, candidates[i].offset))
    chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    todo = [k for k in range(len(chunks)) if k not in journal.done]
    jobs = ([(listing.path(c), c.offset, c.length) for c in _pick(candidates, chunks[k])] for k in todo)
    done = sum(len(chunks[k]) for k in journal.done)
    with tqdm(total=len(order), initial=done, unit="img", desc="index", disable=not progress) as bar:
        for k, looks in zip(
            todo, in_order(partial(look_at, full=full), jobs, workers if len(todo) > _FEW else 1)
        ):
            journal.add(k, looks)
            bar.update(len(looks))
    result: dict[int, Look] = {}
    for k, looks in journal.done.items():
        result.update(zip(chunks[k], (Look(*values) for values in looks)))
    return [result[i] for i in range(len(candidates))]


def _check_unchanged(listing: Listing) -> None:
    """Raise ValueError where a file of images in a store is no longer the one that was listed."""
    for name, _ in listing.files or []:
        if isinstance(path := joined(listing.base, name), RemotePath):
            path.check_unchanged()


def _pick(candidates: list[Candidate], numbers: Iterable[int]) -> list[Candidate]:
    return [candidates[i] for i in numbers]


def _assemble(
    source: Path,
    listing: Listing,
    looks: list[Look],
    numbers: np.ndarray | None,
    classes: list[str],
    origin: Origin,
) -> tuple[Index, list[tuple[str, str]]]:
    """Return the index of the accepted candidates, and all (name, reason) of the rejected."""
    pairs = list(zip(listing.candidates, looks))
    rejected = sorted(listing.rejected + [(c.name, look.reason) for c, look in pairs if look.reason])
    good = np.array([not look.reason for look in looks], bool)
    if not good.any():
        name, reason = rejected[0]
        raise ValueError(
            f"{source} holds no usable image: all {len(rejected)} were rejected, first {name}: {reason}"
        )
    kept = [pair for pair in pairs if not pair[1].reason]
    in_tar = listing.files is not None
    names, times = [c.name for c, _ in kept], {name: time for name, _, time in listing.facts}
    kept_numbers = None if numbers is None else numbers[good]
    origin = replace(
        origin,
        left_out=[] if in_tar else left_out(listing.facts, names),
    )
    index = make_index(
        source=local_place(source),
        names=names,
        sizes=np.array([(look.width, look.height) for _, look in kept]),
        labels=kept_numbers,
        classes=classes,
        crc32=np.array([look.crc32 for _, look in kept]),
        lengths=np.array([c.length for c, _ in kept]),
        offsets=np.array([c.offset for c, _ in kept]) if in_tar else None,
        file_numbers=np.array([c.file for c, _ in kept]) if in_tar else None,
        files=listing.files,
        notes=[look.note for _, look in kept],
        rejected=len(rejected),
        mtimes=np.array([times[name] for name in (names if listing.files is None else times)], np.int64),
        origin=origin,
    )
    return index, rejected


def write_rejected(path: Path, rejected: list[tuple[str, str]]) -> None:
    """Write one line `name<TAB>reason` per rejected file; without any, remove an older list."""
    if not rejected:
        path.unlink(missing_ok=True)
    else:
        escape = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
        lines = [f"{name.translate(escape)}\t{reason.translate(escape)}\n" for name, reason in rejected]
        write_bytes(path, ("name\treason\n" + "".join(lines)).encode(errors="surrogateescape"))


def summary(index: Index, out: Path | None = None) -> str:
    """Return a few lines on an index: images, classes, bytes, notes, and where the rejected are listed."""
    short, long = index.sizes.min(1), index.sizes.max(1)
    size = index.lengths.sum() / 1e6
    labelled = counted(len(index.classes), "class") if index.labels is not None else "no labels"
    lines = [
        f"{counted(len(index), 'image')}, {labelled}, {size:.1f} MB, fingerprint {index.fingerprint[:12]}",
        f"short side {short.min()} to {short.max()} px (median {int(np.median(short))}), "
        f"long side up to {long.max()} px",
    ]
    counts = np.bincount(index.note_numbers, minlength=len(index.notes))
    lines += [*index.origin.remarks, *thin_classes(index.labels, index.classes)]
    lines += [f"noted: {count} x {note}" for note, count in zip(index.notes, counts) if note]
    if index.rejected:
        listed = rejected_path(out or index_path(index.source))
        where = "beside each part" if is_joined(index.source) else f"in {listed}"
        lines.append(f"{counted(index.rejected, 'file')} left out, listed {where}")
    return "\n".join(lines)
