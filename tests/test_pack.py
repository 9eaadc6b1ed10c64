"""Packing: small files keep their bytes, large ones get the short side, and a killed pack goes on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastanc.cli import main
from fastanc.pipelines.index import pack as pack_module
from fastanc.pipelines.index.build import Index, build_index, index_path, rejected_path
from fastanc.pipelines.index.pack import Packed, pack
from support.images import encoded, jpeg, picture, put
from support.processes import forked
from support.tars import contents, write_tar


def _pack(source: Path, out: Path, **options: object) -> Packed:
    return pack(source, out, progress=False, workers=1, **options)  # type: ignore[arg-type]


def test_small_files_keep_their_bytes_and_large_ones_get_the_short_side(
    tmp_path: Path, real_jpegs: list[Path]
) -> None:
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in real_jpegs[:40]}
    source = put(tmp_path / "set", files)
    packed = _pack(source, tmp_path / "packed.tar", short_side=256)
    found = contents(tmp_path / "packed.tar")
    assert list(found) == [packed.index.name(i) for i in range(len(packed.index))] == sorted(files)
    shrunk = 0
    for name, data in files.items():
        before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(found[name]))
        if min(before.size) <= 256:
            assert found[name] == data
            continue
        shrunk += 1
        assert min(after.size) == 256
        assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.5 / 256)
        exact = np.asarray(before.convert("RGB").resize(after.size, Image.Resampling.LANCZOS), float)
        assert (
            np.abs(np.asarray(after.convert("RGB"), float) - exact).mean() < 6
        )  # quality 90 is not lossless
    assert packed.shrunk == shrunk > 20
    assert packed.bytes_before == sum(map(len, files.values()))
    assert packed.bytes_after == (tmp_path / "packed.tar").stat().st_size < packed.bytes_before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "packed.tar",
        "packed.tar.index",
        "set",
        "set.index",
    ]


def test_without_shrinking_a_pack_is_the_same_set(tmp_path: Path) -> None:
    files = {f"c{k % 3}/{k}.jpg": jpeg(k, (60 + k, 50)) for k in range(9)}
    source = put(tmp_path / "set", files)
    packed = _pack(source, tmp_path / "out" / "p.tar")  # as it is by default
    assert packed.index.fingerprint == build_index(source, progress=False).fingerprint
    assert packed.shrunk == 0
    assert Index.load(index_path(tmp_path / "out" / "p.tar")).fingerprint == packed.index.fingerprint


def test_labels_of_other_kinds_become_class_folders_in_the_same_order(tmp_path: Path) -> None:
    members = {}
    for k in range(12):
        members |= {f"k{k:02d}.jpg": jpeg(k, (50, 40)), f"k{k:02d}.cls": b"%d" % (11 - k)}
    source = write_tar(tmp_path / "shard.tar", members)
    index = _pack(source, tmp_path / "p.tar", short_side=32).index
    assert index.classes == [f"{k:02d}" for k in range(12)]
    assert index.labels is not None
    assert [index.name(i) for i in range(12)] == [f"{k:02d}/k{11 - k:02d}.jpg" for k in range(12)]
    assert index.labels.tolist() == list(range(12))
    again = build_index(tmp_path / "p.tar", out=tmp_path / "again.index", progress=False)
    assert again.fingerprint == index.fingerprint  # the tar says its labels itself


def test_modes_and_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "grey.jpg": encoded(picture(size=(90, 60), mode="L")),
        "cmyk.jpg": encoded(picture(size=(90, 60), mode="CMYK")),
        "alpha.png": encoded(picture(size=(90, 60), mode="RGBA"), "PNG"),
        "turned.jpg": jpeg(size=(90, 60), exif=exif),
    }
    index = _pack(put(tmp_path / "set", files), tmp_path / "p.tar", short_side=30).index
    assert index.sizes.tolist() == [[45, 30]] * 4
    assert [index.note(i) for i in range(4)] == [""] * 4
    assert Image.open(io.BytesIO(contents(tmp_path / "p.tar")["grey.jpg"])).mode == "L"


def test_what_does_not_decode_is_left_out_and_named(tmp_path: Path) -> None:
    bad = bytearray(jpeg(5, (90, 60)))
    table = bad.index(b"\xff\xc4") + 5
    bad[table : table + 16] = b"\xff" * 16
    files = {f"c/{k}.jpg": jpeg(k, (90, 60)) for k in range(5)} | {"c/2.jpg": bytes(bad)}
    packed = _pack(put(tmp_path / "set", files), tmp_path / "p.tar", short_side=30)
    assert (len(packed.index), packed.lost, packed.shrunk) == (4, 1, 4)
    assert (
        rejected_path(index_path(tmp_path / "p.tar")).read_text()
        == "name\treason\nc/2.jpg\tdoes not decode\n"
    )


def test_refuses_an_existing_tar_and_a_changed_source(tmp_path: Path) -> None:
    source = put(tmp_path / "set", {f"c/{k}.jpg": jpeg(k, (90, 60)) for k in range(3)})
    _pack(source, tmp_path / "p.tar")
    with pytest.raises(FileExistsError, match=r"p\.tar exists: remove it"):
        _pack(source, tmp_path / "p.tar")
    (source / "c" / "1.jpg").write_bytes(jpeg(9, (90, 60)))
    with pytest.raises(ValueError, match=r"1\.jpg changed from .* since the set was indexed"):
        _pack(source, tmp_path / "q.tar")


BELOW_AND_ABOVE = [
    ({name: value}, name)
    for name, values in {
        "short_side": (0, -5, 2**14 + 1, 1.5),
        "quality": (0, -1, 101, True),
        "workers": (0, -1, 1025, 2.5),
    }.items()
    for value in values
]


@pytest.mark.parametrize(("options", "name"), BELOW_AND_ABOVE, ids=str)
def test_a_number_out_of_range_writes_nothing(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    source = put(tmp_path / "set", {f"c/{k}.jpg": jpeg(k, (90, 60)) for k in range(3)})
    with pytest.raises(ValueError, match=f"^{name} is .*: it takes a whole number, from 1 to "):
        pack(source, tmp_path / "new" / "p.tar", progress=False, **options)
    if name == "workers":
        with pytest.raises(ValueError, match="^workers is .*: it takes a whole number, from 1 to 1024"):
            build_index(source, progress=False, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "options", [{"short_side": 1}, {"quality": 1}, {"quality": 100}, {"short_side": 2**14}]
)
def test_the_ends_of_the_ranges_pack(tmp_path: Path, options: dict[str, int]) -> None:
    source = put(tmp_path / "set", {f"c/{k}.jpg": jpeg(k, (900, 600)) for k in range(3)})
    packed = _pack(source, tmp_path / "p.tar", **options)
    side = min(options.get("short_side", 600), 600)
    assert packed.index.sizes.min(1).tolist() == [side] * 3


@pytest.mark.parametrize(
    "options", [["--short_side", "0"], ["--quality", "101"], ["--workers", "-1"]], ids=str
)
def test_the_command_says_it_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    source = put(tmp_path / "set", {"c/1.jpg": jpeg()})
    with pytest.raises(SystemExit, match="2"):
        main(["pack", str(source), str(tmp_path / "p.tar"), *options])
    said = capsys.readouterr().err
    assert said.startswith(f"fastanc: {options[0]} is '{options[1]}': it takes")
    assert said.count("\n") == 1
    if options[0] == "--workers":
        index_path(source).write_text("an older one")
        with pytest.raises(SystemExit, match="2"):
            main(["index", "--refresh", str(source), *options])
        assert index_path(source).read_text() == "an older one"
    assert not (tmp_path / "p.tar").exists()


@pytest.mark.parametrize("kind", ["no image decodes", "a file changes", "no source", "no image"])
def test_a_failed_pack_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source, out = tmp_path / "set", tmp_path / "out"
    out.mkdir()
    if kind == "no image":
        put(source, {"c/1.jpg": b"", "c/2.jpg": b""})
    elif kind != "no source":
        put(source, {f"c/{k}.jpg": jpeg(k, (90, 60)) for k in range(70)})
        build_index(source, progress=False, workers=1)
    if kind == "no image decodes":
        monkeypatch.setattr(pack_module, "smaller", lambda *_: 1 / 0)
    if kind == "a file changes":
        genuine = pack_module.smaller

        def change(data: bytes, *sides: int) -> bytes:
            (source / "c" / "69.jpg").write_bytes(b"other")
            return genuine(data, *sides)

        monkeypatch.setattr(pack_module, "smaller", change)
    with pytest.raises((ValueError, FileNotFoundError)):
        _pack(source, out / "p.tar", short_side=30)
    assert list(out.iterdir()) == []
    assert not list(tmp_path.glob("*.journal"))


_PACK = """
import sys
from pathlib import Path
from fastanc.pipelines.index.pack import pack
pack(Path(sys.argv[1]), Path(sys.argv[2]), short_side=200, workers=2, progress=False)
"""


def test_killed_in_mid_pack_it_goes_on_and_gives_the_same(
    tmp_path: Path, real_jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in real_jpegs}
    source = put(tmp_path / "set", files)
    build_index(source, progress=False)
    out, part = tmp_path / "p.tar", tmp_path / "p.tar.part"
    process = subprocess.Popen([sys.executable, "-c", _PACK, source, out])
    deadline = time.monotonic() + 1800  # of a hang
    while not part.exists() or part.stat().st_size < 500_000:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with open(part, "ab") as file:
        file.truncate(part.stat().st_size - 700)  # a write that the kill tore

    smaller = []
    genuine = pack_module.smaller
    monkeypatch.setattr(pack_module, "smaller", lambda *a: smaller.append(1) or genuine(*a))
    resumed = _pack(source, out, short_side=200)
    fresh = len(smaller)
    whole = _pack(source, tmp_path / "whole.tar", short_side=200)
    assert 0 < fresh < len(smaller) - fresh  # only what was missing was done again
    assert out.read_bytes() == (tmp_path / "whole.tar").read_bytes()
    assert resumed.index.fingerprint == whole.index.fingerprint
    assert (
        not list(tmp_path.glob("*.part*")) + list(tmp_path.glob("*.lock")) + list(tmp_path.glob("*.journal"))
    )


def test_a_part_of_other_settings_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "set", {f"c/{k:03d}.jpg": jpeg(k, (90, 60)) for k in range(70)})
    calls = iter(range(1000))

    def full_disk(tasks: list, short_side: int, quality: int) -> tuple[bytes, int]:
        if next(calls) == 1:
            raise OSError("disk full")
        return genuine(tasks, short_side=short_side, quality=quality)

    genuine = pack_module._shrink
    monkeypatch.setattr(pack_module, "_shrink", full_disk)
    with pytest.raises(OSError, match="disk full"):
        _pack(source, tmp_path / "p.tar", short_side=40)
    assert (tmp_path / "p.tar.part").stat().st_size > 0
    index = _pack(source, tmp_path / "p.tar", short_side=30).index
    assert index.sizes.tolist() == [[45, 30]] * 70


def test_killed_between_the_tar_and_its_index_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "set", {f"{c}/{k}.jpg": jpeg(k, (90, 60)) for c in "ab" for k in range(3)})
    (source / "0empty").mkdir()  # a class without images, which the tar cannot tell
    whole = _pack(source, tmp_path / "whole.tar", short_side=32)

    def killed() -> None:
        monkeypatch.setattr(pack_module, "build_index", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        _pack(source, tmp_path / "p.tar", short_side=32)

    os.waitpid(forked(killed), 0)
    assert (tmp_path / "p.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()
    assert not index_path(tmp_path / "p.tar").exists()
    with pytest.raises(FileExistsError):  # with other settings it is somebody else's
        _pack(source, tmp_path / "p.tar", short_side=33)
    again = _pack(source, tmp_path / "p.tar", short_side=32)
    assert (again.index.classes, again.index.labels.tolist()) == (
        whole.index.classes,
        whole.index.labels.tolist(),
    )
    assert not list(tmp_path.glob("*.part*"))
    with pytest.raises(FileExistsError):
        _pack(source, tmp_path / "p.tar", short_side=32)
