"""The index: the same images from every kind of source, every kind of bad file named, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastanc.pipelines.index import build as index_module
from fastanc.pipelines.index.build import Index, build_index, index_path, open_index, rejected_path, summary
from fastanc.pipelines.index.image_check import jpeg_problem, look
from fastanc.pipelines.index.sources import list_source
from fastanc.pipelines.index.table import make_index
from fastanc.pipelines.index.workers import Journal
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from support.bad_files import bad_files, with_thumbnail
from support.images import encoded, jpeg, picture, put
from support.tars import tar_of_tars, write_tar

CLASSES = ("n01440764", "n02102040", "n03394916")


def _build(source: Path, said: SourceOptions = PLAIN, out: Path | None = None, **options: object) -> Index:
    return build_index(source, said, out=out, progress=False, workers=1, **options)  # type: ignore[arg-type]


def _bytes(index: Index) -> dict[str, bytes]:
    found = {}
    for i, (path, offset, length) in enumerate(index.places(range(len(index)))):
        with open(path, "rb") as file:
            file.seek(offset)
            found[index.name(i)] = file.read(length)
    return found


def _rejected(out: Path) -> dict[str, str]:
    lines = rejected_path(out).read_text().splitlines()
    assert lines[0] == "name\treason"
    return dict(line.split("\t") for line in lines[1:])


@pytest.fixture
def jpegs() -> dict[str, bytes]:
    """Twelve small JPEGs in three classes, by name."""
    return {
        f"{c}/{c}_{k}.JPEG": jpeg(10 * j + k, (40 + k, 30 + j))
        for j, c in enumerate(CLASSES)
        for k in range(4)
    }


# ---- sources


def test_tree_tar_and_tar_of_tars_are_one_index(tmp_path: Path, real_jpegs: list[Path]) -> None:
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in real_jpegs[:60]}
    tree = put(tmp_path / "tree", files)
    shuffled = dict(sorted(files.items(), key=lambda item: zlib.crc32(item[0].encode())))
    plain = write_tar(tmp_path / "plain.tar", {f"./train/{name}": data for name, data in shuffled.items()})
    nested = tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", files)

    indexes = [_build(source, out=tmp_path / f"{k}.index") for k, source in enumerate((tree, plain, nested))]
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(tree))
    for index in indexes:
        assert index.labels is not None
        assert [str(tree / index.name(i)) for i in range(len(index))] == [path for path, _ in folder.samples]
        assert index.labels.tolist() == folder.targets
        assert index.classes == folder.classes
        assert [tuple(size) for size in index.sizes] == [Image.open(path).size for path, _ in folder.samples]
        assert _bytes(index) == files
        assert index.crc32.tolist() == [zlib.crc32(files[index.name(i)]) for i in range(len(index))]
        assert index.fingerprint == indexes[0].fingerprint
    assert indexes[2].containers() == [(str(nested), nested.stat().st_size)]
    assert dict(indexes[0].containers()) == {str(tree / name): len(data) for name, data in files.items()}


def test_the_order_is_imagefolders_even_where_names_collate_oddly(tmp_path: Path) -> None:
    names = [
        "a/z.jpg",
        "a/x/1.jpg",
        "a/x-y/1.jpg",
        "a/x/y/2.jpg",
        "a-b/1.jpg",
        "a.b/1.jpg",
        "B/1.jpg",
        "ä/1.jpg",
    ]
    data = jpeg()
    tree = put(tmp_path / "tree", dict.fromkeys(names, data))
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(tree))
    index = _build(tree)
    assert [str(tree / index.name(i)) for i in range(len(index))] == [path for path, _ in folder.samples]
    assert index.classes == folder.classes
    source = write_tar(tmp_path / "t.tar", dict.fromkeys(names, data), tarfile.PAX_FORMAT)
    assert _build(source).fingerprint == index.fingerprint


def test_folder_of_class_tars_as_unpacked_once_from_the_outer_tar(
    tmp_path: Path, jpegs: dict[str, bytes]
) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for c in CLASSES:
        write_tar(folder / f"{c}.tar", {n.split("/")[1]: d for n, d in jpegs.items() if n.startswith(c)})
    index = _build(folder)
    assert index.fingerprint == _build(put(tmp_path / "tree", jpegs)).fingerprint
    assert len(index.containers()) == 3


def test_webdataset_shards_with_cls_or_json(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    pictures = [jpeg(k) for k in range(6)]
    for shard in range(2):
        members = []
        for k in range(3):
            n = 3 * shard + k
            members += [(f"{k:04d}.jpg", pictures[n]), (f"{k:04d}.txt", b"a caption")]
            members += [(f"{k:04d}.cls", b"%d\n" % (n * 7 % 5))] if shard == 0 else []
            members += [(f"{k:04d}.json", json.dumps({"label": n * 7 % 5}).encode())] if shard else []
        write_tar(folder / f"set-{shard:06d}.tar", members)
    index = _build(folder)
    assert [index.name(i) for i in range(6)] == [f"set-{n // 3:06d}/{n % 3:04d}.jpg" for n in range(6)]
    assert index.labels is not None
    assert index.labels.tolist() == [n * 7 % 5 for n in range(6)]
    assert index.classes == ["0", "1", "2", "3", "4"]
    assert list(_bytes(index).values()) == pictures


def test_webdataset_names_second_images_and_missing_labels(tmp_path: Path) -> None:
    data = jpeg()
    members = [("a.jpg", data), ("a.cls", b"cat"), ("b.jpg", data), ("c.jpg", data), ("c.cls", b"dog")]
    source = write_tar(tmp_path / "wds.tar", [*members, ("c.png", encoded(picture(), "PNG"))])
    index = _build(source)
    assert (index.classes, index.rejected) == (["cat", "dog"], 2)
    reasons = _rejected(index_path(source))
    assert "no label" in reasons["b.jpg"]
    assert "second image of the key of c.jpg" in reasons["c.png"]


def test_flat_folder_flat_tar_and_shards_without_labels(tmp_path: Path) -> None:
    files = {f"{k}.jpg": jpeg(k) for k in range(3)}
    flat = _build(put(tmp_path / "flat", files))
    assert flat.labels is None
    assert flat.classes == []
    assert _build(write_tar(tmp_path / "flat.tar", files)).fingerprint == flat.fingerprint
    (tmp_path / "shards").mkdir()
    for k in range(2):
        write_tar(tmp_path / "shards" / f"part-{k}.tar", files)
    assert _build(tmp_path / "shards").labels is None


def test_val_labels_from_every_kind_of_file(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 5)]
    source = write_tar(tmp_path / "ILSVRC2012_img_val.tar", {n: jpeg(k) for k, n in enumerate(names)})
    wnids = [CLASSES[k] for k in (2, 0, 1, 0)]
    ids = {"n01440764": 3, "n02102040": 1, "n03394916": 2}  # as in the devkit: not in sorted order
    texts = {
        "one_per_line.txt": "\n".join(wnids),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "\n".join(f"{n[:-5]},{w} 1 2 3 4" for n, w in reversed(list(zip(names, wnids)))),
        "valprep.sh": "mkdir n01440764\n" + "\n".join(f"mv {n} {w}/" for n, w in zip(names, wnids)),
        "ILSVRC2012_validation_ground_truth.txt": "\n".join(str(ids[w]) for w in wnids),
        "val.txt": "\n".join(f"{n} {CLASSES.index(w)}" for n, w in zip(names, wnids)),
    }
    synsets = tmp_path / "synsets.tsv"
    synsets.write_text("\n".join(f"{i}\t{w}\tsome words" for w, i in ids.items()))
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        index = _build(source, SourceOptions(labels=tmp_path / name, synsets=synsets))
        assert index.labels is not None
        assert index.labels.tolist() == [2, 0, 1, 0], name
        assert index.classes == (["0", "1", "2"] if name == "val.txt" else list(CLASSES))

    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    with pytest.raises(ValueError, match="ILSVRC2012_IDs, which are not in the order"):
        _build(source, SourceOptions(labels=truth))
    synsets.write_text("\n".join(f"{k}\t{w}" for k, w in enumerate(CLASSES)))
    with pytest.raises(ValueError, match="numbers the sorted WordNet ids"):
        _build(source, SourceOptions(labels=truth, synsets=synsets))
    truth.write_text("1\n2\n")
    with pytest.raises(ValueError, match="2 labels for 4 images"):
        _build(source, SourceOptions(labels=truth, synsets=synsets))


def test_sources_that_cannot_be_meant(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _build(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        _build(tmp_path / "empty")
    for split in ("train", "val"):
        put(tmp_path / "both" / split, jpegs)
    with pytest.raises(ValueError, match="holds the splits train, val"):
        _build(tmp_path / "both")
    with pytest.raises(ValueError, match="all 1 were rejected, first x.jpg: empty file"):
        _build(put(tmp_path / "bad", {"x.jpg": b""}))
    with pytest.raises(ValueError, match="'n01440764', which is not among the 1 classes"):
        _build(put(tmp_path / "tree", jpegs), classes=["n0"])


# ---- bad files


def test_every_bad_file_is_named_with_its_reason(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    bad = bad_files()
    assert len(bad) >= 20
    tree = put(tmp_path / "tree", jpegs | {f"{CLASSES[0]}/{name}": data for name, (data, _) in bad.items()})
    os.mkfifo(tree / CLASSES[1] / "pipe.jpg")
    (tree / CLASSES[1] / "broken_link.jpg").symlink_to("nowhere")
    (tree / CLASSES[1] / "folder.jpg").mkdir()
    put(tree, {"outside.jpg": jpegs[f"{CLASSES[0]}/{CLASSES[0]}_0.JPEG"], "notes.txt": b"passed over"})
    index = _build(tree)
    assert _bytes(index) == jpegs
    reasons = _rejected(index_path(tree))
    expected = {f"{CLASSES[0]}/{name}": reason for name, (_, reason) in bad.items()} | {
        f"{CLASSES[1]}/pipe.jpg": "not a regular file",
        f"{CLASSES[1]}/broken_link.jpg": "broken link",
        "outside.jpg": "outside of the class folders",
    }
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name], (name, reasons[name])
    assert index.rejected == len(expected)
    assert any("beside the class folders are left out (1 of them)" in remark for remark in index.remarks)
    assert f"{len(expected)} files left out" in summary(index)


def test_names_that_leave_their_folder_and_repeated_names_in_a_tar(tmp_path: Path) -> None:
    old, new = jpeg(1), jpeg(2)
    names = ["../up.jpg", "/etc/absolute.jpg", "c/../../up.jpg", "c/twice.jpg", "c/good.jpg"]
    source = write_tar(tmp_path / "t.tar", [*((name, old) for name in names), ("c/twice.jpg", new)])
    index = _build(source)
    assert _bytes(index) == {"c/good.jpg": old, "c/twice.jpg": new}  # what unpacking would leave
    reasons = _rejected(index_path(source))
    assert all("leaves its folder" in reasons[name] for name in names[:3])
    assert "later member" in reasons["c/twice.jpg"]


def test_odd_but_good_images_are_accepted_and_noted(tmp_path: Path) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(90)
    files = {
        "cmyk.jpg": (encoded(image.convert("CMYK")), "JPEG CMYK"),
        "grey.jpg": (encoded(image.convert("L")), ""),
        "progressive.jpg": (encoded(image, progressive=True), ""),
        "turned.jpg": (encoded(image, exif=exif), "EXIF orientation 6, read unrotated"),
        "thumbnail.jpg": (with_thumbnail(encoded(image)), ""),
        "junk_behind.jpg": (encoded(image) + b"\xff\xda junk" * 50, ""),
        "fill_bytes.jpg": (encoded(image)[:2] + b"\xff\xff" + encoded(image)[2:], ""),
        "png_inside.JPEG": (encoded(image, "PNG"), "PNG RGB"),
        "palette.png": (encoded(image.convert("P"), "PNG"), "PNG P"),
        "alpha.png": (encoded(alpha, "PNG"), "PNG RGBA"),
        "w.webp": (encoded(image, "WEBP"), "WEBP RGB"),
        "b.bmp": (encoded(image, "BMP"), "BMP RGB"),
    }
    index = _build(put(tmp_path / "set", {name: data for name, (data, _) in files.items()}))
    assert {index.name(i): index.note(i) for i in range(len(index))} == {
        n: note for n, (_, note) in files.items()
    }
    assert index.sizes.tolist() == [[48, 36]] * len(files)  # the rotated one too


def test_full_finds_what_only_decoding_sees() -> None:
    good = encoded(picture(0, (400, 300)), "PNG")
    assert "does not decode" in look(good[:2000] + bytes(500) + good[2500:]).reason
    bad = bytearray(jpeg(0, (400, 300), quality=95))
    table = bad.index(b"\xff\xc4") + 5
    bad[table : table + 16] = b"\xff" * 16  # Huffman codes that cannot be
    assert look(bytes(bad)).reason == ""
    assert "does not decode" in look(bytes(bad), full=True).reason


def test_no_cut_of_a_real_jpeg_passes(real_jpegs: list[Path]) -> None:
    for path in real_jpegs[:20]:
        data = path.read_bytes()
        assert jpeg_problem(data) == ""
        for length in np.linspace(2, len(data.rstrip(b"\0")) - 1, 60).astype(int):
            assert jpeg_problem(data[:length]) != "", (path, length)


# ---- the file


def test_saved_index_is_the_same_and_moves_with_its_set(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    put(tmp_path / "old" / "train", jpegs)
    index = _build(tmp_path / "old" / "train")
    (tmp_path / "old").rename(tmp_path / "new")
    loaded = Index.load(tmp_path / "new" / "train.index")
    assert loaded.source == tmp_path / "new" / "train"
    assert _bytes(loaded) == jpegs
    for key in ("sizes", "labels", "crc32", "lengths", "note_numbers", "name_bytes", "name_ends"):
        assert np.array_equal(getattr(loaded, key), getattr(index, key)), key
        assert not getattr(loaded, key).flags.writeable
    assert (loaded.classes, loaded.fingerprint) == (index.classes, index.fingerprint)


def test_subset_keeps_rows_and_has_its_own_fingerprint(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    source = write_tar(tmp_path / "t.tar", jpegs)
    index = _build(source)
    mask = np.arange(len(index)) % 3 == 1
    part = index.subset(mask)
    assert [part.name(i) for i in range(len(part))] == [index.name(i) for i in np.flatnonzero(mask)]
    assert part.places([0, 1]) == index.places([1, 4])
    assert part.fingerprint != index.fingerprint
    assert index.subset(np.ones(len(index), bool)).fingerprint == index.fingerprint


def test_the_fingerprint_sees_names_bytes_and_labels(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    name, data = next(iter(jpegs.items()))
    other = {
        "same": jpegs,
        "bytes": jpegs | {name: data + b"x"},
        "name": {key.replace("_0.", "_x."): value for key, value in jpegs.items()},
        "label": {key: value for key, value in jpegs.items() if key != name}
        | {f"{CLASSES[1]}/{name[10:]}": data},
    }
    prints = [_build(put(tmp_path / key, files)).fingerprint for key, files in other.items()]
    assert len(set(prints)) == 4
    assert prints[0] == _build(write_tar(tmp_path / "t.tar", jpegs)).fingerprint


def test_a_damaged_index_is_one_sentence(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    path = index_path(put(tmp_path / "set", jpegs))
    _build(tmp_path / "set")
    whole = path.read_bytes()
    for data, word in (
        (whole[:-64], "cut off"),
        (b"other" + whole, "not an index"),
        (whole[:200], "cut off"),
        (whole[:8] + b"\xff" * 8 + whole[16:], "cut off"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"set\.index .*{word}.*: build it again with 'fastanc index'"):
            Index.load(path)


def test_a_header_that_says_nonsense_is_the_same_sentence(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    path = index_path(put(tmp_path / "set", jpegs))
    _build(tmp_path / "set")
    whole = path.read_bytes()
    end = 24 + int.from_bytes(whole[8:16], "little")
    header, data = json.loads(whole[24:end]), whole[end:]
    columns = header["columns"]
    lost = [{key: value for key, value in header.items() if key != gone} for gone in header]
    unlike = [
        {**header, key: value} for key in ("source", "columns", "bytes", "files") for value in ("x", [1], 7)
    ]
    bent = [
        {**header, "columns": {**columns, "sizes": value}}
        for value in (None, ["<i4", [-1], 0], ["<i4", [10**9], 0], ["O", [1], 0], ["<i4", "x", 0])
    ]
    gone = {**header, "columns": {key: value for key, value in columns.items() if key != "lengths"}}
    for said in (*lost, *unlike, *bent, gone, [], None, 3):
        text = json.dumps(said).encode()
        head = len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(8, "little")
        path.write_bytes(whole[:8] + head + text + data)
        with pytest.raises(ValueError, match=r"set\.index is (damaged|cut off): build it again"):
            Index.load(path)
    path.write_bytes(whole)
    assert len(Index.load(path)) == len(jpegs)


def test_index_path_is_beside_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index_path(tmp_path / "train.tar") == tmp_path / "train.tar.index"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FASTANC_CACHE", raising=False)
    assert index_path(tmp_path / "train").parent == tmp_path / "xdg" / "fastanc" / "index"
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "own"))
    paths = {index_path(tmp_path / a / "train") for a in "ab"}
    assert {path.parent for path in paths} == {tmp_path / "own" / "index"}
    assert len(paths) == 2


# ---- killed and resumed

_BUILD = """
import sys
from pathlib import Path
from fastanc.pipelines.index.build import build_index
build_index(Path(sys.argv[1]), out=Path(sys.argv[2]), workers=2, full=True, progress=False)
"""


def test_killed_in_mid_index_it_goes_on_and_gives_the_same(
    tmp_path: Path, real_jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(9):  # 2,700 names for 300 images
        for path in real_jpegs:
            folder = tmp_path / "set" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k}_{path.name}").symlink_to(path)
    out = tmp_path / "killed.index"
    journal = tmp_path / "killed.index.journal"
    process = subprocess.Popen([sys.executable, "-c", _BUILD, tmp_path / "set", out])
    deadline = time.monotonic() + 1800  # of a hang
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert not out.exists()
    with open(journal, "ab") as file:
        file.write(b"[9, [[300, 2")  # the line that the kill tore

    looked = []
    genuine = index_module.look_at
    monkeypatch.setattr(
        index_module, "look_at", lambda places, full: looked.append(len(places)) or genuine(places, False)
    )
    resumed = build_index(tmp_path / "set", out=out, workers=1, full=True, progress=False)
    assert sum(looked) == len(resumed) - 256 * done
    assert not journal.exists()
    whole = build_index(tmp_path / "set", out=tmp_path / "whole.index", workers=1, full=True, progress=False)
    assert len(whole) == 2700
    assert out.read_bytes() == (tmp_path / "whole.index").read_bytes()
    while any(Path(f"/proc/{child}/cmdline").exists() and _alive(child) for child in children):
        assert time.monotonic() < deadline, "workers outlived their killed parent"
        time.sleep(0.01)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_damaged_journal_is_used_up_to_the_damage(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.journal", np.random.default_rng(0)
    journal = Journal(path, "stamp")
    for k in range(20):
        journal.add(k, [[300 + k, 200, 7 * k, "", ""]])
    journal.close()
    whole = path.read_bytes()
    for position in rng.integers(0, len(whole), 60).tolist():
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(7))
        path.write_bytes(flipped)
        found = Journal(path, "stamp")
        assert found.done == {k: [[300 + k, 200, 7 * k, "", ""]] for k in range(len(found.done))}
        assert len(found.done) == max(0, whole[:position].count(b"\n") - 1)
        found.close()


def test_a_journal_of_changed_files_is_not_used(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    tree = put(tmp_path / "set", jpegs)
    out = tmp_path / "x.index"
    name = next(iter(jpegs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            _build(tree, out=out)
    assert (tmp_path / "x.index.journal").exists()
    (tree / name).write_bytes(jpeg(77, (70, 50)))
    index = _build(tree, out=out)
    assert index.sizes[[index.name(i) for i in range(len(index))].index(name)].tolist() == [70, 50]


def test_open_index_builds_once_among_many_processes(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    tree = put(tmp_path / "set", jpegs)
    # Who builds waits until all three have come, and then for half a second in which the others ask for the lock.
    code = (
        "import sys, time; from pathlib import Path\n"
        "import fastanc.pipelines.index.build as m; inner = m._look_at_all\n"
        "log = Path(sys.argv[2])\n"
        "def say(word): log.open('a').write(word + '\\n')\n"
        "def spy(*a):\n"
        "    say('built')\n"
        "    while log.read_text().count('here') < 3: time.sleep(0.01)\n"
        "    time.sleep(0.5); return inner(*a)\n"
        "m._look_at_all = spy; say('here'); print(m.open_index(Path(sys.argv[1])).fingerprint)"
    )
    log = tmp_path / "log"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tree, log], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    prints = {run.communicate()[0] for run in runs}
    assert prints == {open_index(tree).fingerprint + "\n"}
    assert sorted(log.read_text().split()) == ["built", "here", "here", "here"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "set", "set.index"]


# ---- scale


def test_a_million_rows_load_at_once(tmp_path: Path) -> None:
    n = 1_281_167
    rng = np.random.default_rng(0)
    names = [f"n{k // 1300:08d}/n{k // 1300:08d}_{k}.JPEG" for k in range(n)]
    index = make_index(
        source=tmp_path,
        names=names,
        sizes=rng.integers(200, 600, (n, 2)),
        labels=np.arange(n) // 1300,
        classes=[f"n{k:08d}" for k in range(986)],
        crc32=rng.integers(0, 1 << 32, n),
        lengths=rng.integers(10_000, 200_000, n),
        offsets=np.arange(n) * 200_000,
        file_numbers=np.zeros(n, int),
        files=[("train.tar", n * 200_000)],
        notes=[""] * n,
    )
    path = tmp_path / "big.index"
    index.save(path)
    # At once: the columns are mapped, so few bytes are read, and nothing is called for every row.
    code = (
        "import sys, time, numpy as np; from pathlib import Path; from fastanc.pipelines.index.table import Index\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "def read(): return int(open('/proc/self/io').read().split()[1])\n"
        "calls = 0\n"
        "def count(*_): global calls; calls += 1\n"
        "before, start, read_before = rss(), time.perf_counter(), read()\n"
        "sys.setprofile(count); index = Index.load(Path(sys.argv[1]))\n"
        "total = sum(int(getattr(index, k).sum()) for k in ('sizes', 'labels', 'lengths', 'offsets', 'name_bytes'))\n"
        "sys.setprofile(None); seconds = time.perf_counter() - start\n"
        "print(seconds, read() - read_before, calls, rss() - before, len(index), index.name(len(index) - 1))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    ).stdout
    seconds, read, calls, memory, rows, last = out.split()
    print(f"{float(seconds):.3f} s, {read} bytes read, {calls} calls and returns")
    assert (int(rows), last) == (n, names[-1])
    assert int(read) < 1e6
    assert int(calls) < 10_000
    assert int(memory) < 200e6


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path, jpegs: dict[str, bytes]) -> None:
    tree = put(tmp_path / "set", jpegs)
    (tree / "n00000001").mkdir()
    assert _build(tree).classes == ["n00000001", *CLASSES]
    assert list_source(tree).classes == ["n00000001", *CLASSES]
