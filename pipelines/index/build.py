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

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastanc.files import make_folder, sweep, write_bytes
from fastanc.pipelines.index.image_check import Look, look_at
from fastanc.pipelines.index.labels import read_labels
from fastanc.pipelines.index.sources import Candidate, Label, Listing, list_source
from fastanc.pipelines.index.table import Index, make_index
from fastanc.pipelines.index.workers import Journal, default_workers, in_order
from fastanc.pipelines.places import cache_dir

__all__ = [
    "Index",
    "build_index",
    "index_path",
    "open_index",
    "rejected_path",
    "summary",
    "write_rejected",
]

_CHUNK = 256
_FEW = 8  # chunks that are done before another process has started


def index_path(source: Path) -> Path:
    """Return where a source's index lies: beside it, or in the cache folder where that cannot be written."""
    source = Path(os.path.abspath(source))
    beside = source.with_name(f"{source.name}.index")
    if beside.exists() or os.access(source.parent, os.W_OK):
        return beside
    digest = hashlib.blake2b(os.fsencode(source), digest_size=6).hexdigest()
    return cache_dir() / "index" / f"{source.name}-{digest}.index"


def rejected_path(out: Path) -> Path:
    """Return where the list of rejected files of the index `out` lies."""
    return out.with_name(out.name.removesuffix(".index") + ".rejected.tsv")


def open_index(source: Path, *, labels: Path | None = None, synsets: Path | None = None) -> Index:
    """Return a source's index, built at first use; of several processes one builds and the others wait."""
    path = index_path(source)
    return (
        Index.load(path) if path.exists() else build_index(source, labels=labels, synsets=synsets, keep=True)
    )


def build_index(
    source: Path,
    *,
    out: Path | None = None,
    workers: int | None = None,
    full: bool = False,
    progress: bool = True,
    labels: Path | None = None,
    synsets: Path | None = None,
    classes: Sequence[str] | None = None,
    keep: bool = False,
) -> Index:
    """Read every image of a folder or tar once; write its index and the list of rejected files.

    Killed at any moment, the next call goes on from the journal beside `out` (`index_path(source)`).
    `full` decodes every image; `labels` and `synsets` are files for a flat source (see `labels.py`);
    `classes` fixes the numbering; `keep` returns an index that another process finished in the meantime.
    """
    source = Path(source)
    out = Path(out) if out is not None else index_path(source)
    make_folder(out.parent)
    listing = list_source(source)
    texts = _label_texts(listing, labels, synsets)
    numbers, classes = _number_labels(texts, classes or listing.classes, source)
    stamp = f"{listing.stamp} full={full} chunk={_CHUNK} {','.join(Look._fields)}"
    journal = Journal(out.with_name(f"{out.name}.journal"), stamp)
    if keep and out.exists():
        journal.remove()
        return Index.load(out)
    sweep(out.parent, out.name)  # only who holds the journal writes there
    try:
        looks = _look_at_all(listing, journal, workers or default_workers(), full, progress)
        index, rejected = _assemble(source, listing, looks, numbers, classes)
        write_rejected(rejected_path(out), rejected)
        index.save(out)
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return index


def _label_texts(listing: Listing, labels: Path | None, synsets: Path | None) -> list[Label]:
    if labels is None:
        return [candidate.label for candidate in listing.candidates]
    return list(read_labels(Path(labels), [c.name for c in listing.candidates], synsets))


def _number_labels(
    texts: Sequence[Label], classes: Sequence[str] | None, source: Path
) -> tuple[np.ndarray | None, list[str]]:
    """Return the labels as positions in the class list, and that list."""
    if not texts or texts[0] is None:
        return None, []
    if all(isinstance(text, int) for text in texts):
        numbers = np.array(texts, np.int64)
        names = list(classes) if classes else [str(k) for k in range(int(numbers.max()) + 1)]
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise ValueError(
                f"{source} has labels from {numbers.min()} to {numbers.max()}, not of {len(names)} classes"
            )
        return numbers, names
    if any(isinstance(text, int) for text in texts):
        raise ValueError(f"{source} has class numbers and class names as labels: use one kind")
    names = list(classes) if classes else sorted({str(text) for text in texts})
    position = {name: k for k, name in enumerate(names)}
    if unknown := sorted({str(text) for text in texts} - set(position)):
        raise ValueError(
            f"{source} has the class {unknown[0]!r}, which is not among the {len(names)} classes given"
        )
    return np.array([position[str(text)] for text in texts], np.int64), names


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


def _pick(candidates: list[Candidate], numbers: Iterable[int]) -> list[Candidate]:
    return [candidates[i] for i in numbers]


def _assemble(
    source: Path, listing: Listing, looks: list[Look], numbers: np.ndarray | None, classes: list[str]
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
    index = make_index(
        source=source,
        names=[c.name for c, _ in kept],
        sizes=np.array([(look.width, look.height) for _, look in kept]),
        labels=None if numbers is None else numbers[good],
        classes=classes,
        crc32=np.array([look.crc32 for _, look in kept]),
        lengths=np.array([c.length for c, _ in kept]),
        offsets=np.array([c.offset for c, _ in kept]) if in_tar else None,
        file_numbers=np.array([c.file for c, _ in kept]) if in_tar else None,
        files=listing.files,
        notes=[look.note for _, look in kept],
        rejected=len(rejected),
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
    labelled = f"{len(index.classes)} classes" if index.labels is not None else "no labels"
    lines = [
        f"{len(index)} images, {labelled}, {size:.1f} MB, fingerprint {index.fingerprint[:12]}",
        f"short side {short.min()} to {short.max()} px (median {int(np.median(short))}), "
        f"long side up to {long.max()} px",
    ]
    counts = np.bincount(index.note_numbers, minlength=len(index.notes))
    lines += [f"noted: {count} x {note}" for note, count in zip(index.notes, counts) if note]
    if index.rejected:
        lines.append(
            f"{index.rejected} files left out, listed in {rejected_path(out or index_path(index.source))}"
        )
    return "\n".join(lines)
