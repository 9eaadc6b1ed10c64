"""Tars are walked by their headers: names, offsets and lengths against the standard library's tarfile."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import Order
from fastanc.pipelines.tar_file import END_MARK, Member, member_bytes, walk, walk_nested
from fastanc.pipelines.views import RandomResizedCrop
from support.images import put
from support.tars import contents, tar_of_tars, write_tar

FILES = {
    "a/one.jpg": b"1" * 700,
    "a/empty.jpg": b"",
    "b/" + "long" * 60 + ".jpg": b"x" * 512,
    "b/ümläut.jpg": b"y" * 513,
    ("deep/" * 30) + "end.jpg": b"z",
}


def _contents(path: Path, members: list[Member]) -> dict[str, bytes]:
    data = path.read_bytes()
    return {m.name: data[m.offset : m.offset + m.length] for m in members}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_gives_the_bytes_that_were_put_in(tmp_path: Path, form: int) -> None:
    path = write_tar(tmp_path / "t.tar", FILES, form)
    assert _contents(path, list(walk(path))) == FILES


def test_ustar_prefix_and_pax_global_header(tmp_path: Path) -> None:
    name = "p" * 120 + "/" + "n" * 90 + ".jpg"
    path = write_tar(tmp_path / "u.tar", {name: b"ustar"}, tarfile.USTAR_FORMAT)
    assert _contents(path, list(walk(path))) == {name: b"ustar"}
    path = write_tar(tmp_path / "g.tar", FILES, tarfile.PAX_FORMAT, pax_headers={"comment": "all of them"})
    assert _contents(path, list(walk(path))) == FILES


def test_gnu_tar_itself_agrees(tmp_path: Path) -> None:
    put(tmp_path / "in", FILES)
    path = tmp_path / "t.tar"
    for form in ("gnu", "posix", "oldgnu"):
        subprocess.run(["tar", f"--format={form}", "-cf", path, "-C", tmp_path / "in", "."], check=True)
        found = {name.removeprefix("./"): data for name, data in _contents(path, list(walk(path))).items()}
        assert found == FILES


def test_sizes_above_8_gib_are_read_as_base_256(tmp_path: Path) -> None:
    size = (9 << 30) + 3
    info = tarfile.TarInfo("huge.bin")
    info.size = size
    path = tmp_path / "huge.tar"
    after = 512 + -(-size // 512) * 512
    with open(path, "wb") as file:  # a sparse file: nothing is written between the two members
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(after)
        file.write(member_bytes("b.jpg", b"after") + END_MARK)
    assert list(walk(path)) == [Member("huge.bin", 512, size), Member("b.jpg", after + 512, 5)]


def test_links_are_named_not_followed_and_sparse_files_too(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a" * 1000)
    os.link(folder / "a.jpg", folder / "b.jpg")
    (folder / "c.jpg").symlink_to("a.jpg")
    with open(folder / "s.jpg", "wb") as file:
        for k in range(12):  # more than four pieces: the map does not fit into the old format's first header
            file.seek(k << 20)
            file.write(b"s" * 4096)
    (folder / "z.jpg").write_bytes(b"z" * 100)
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        names = sorted(os.listdir(folder))
        subprocess.run(["tar", f"--format={form}", "-Scf", path, "-C", folder, *names], check=True)
        members = {m.name: m for m in walk(path)}
        assert sorted(members) == names
        assert members["b.jpg"].problem == members["c.jpg"].problem == "a link inside the tar"
        assert members["s.jpg"].problem == "a sparse file inside the tar"
        assert _contents(path, [members["z.jpg"]]) == {"z.jpg": b"z" * 100}


def test_inner_tars_are_ranges_of_the_outer_file(tmp_path: Path) -> None:
    files = {f"{c}/{c}_{k}.JPEG": os.urandom(600) for c in "ab" for k in range(5)}
    outer = tar_of_tars(tmp_path / "outer.tar", files)
    assert _contents(outer, walk_nested(outer)) == files


def test_a_tar_like_ilsvrc_s_trains_in_place(
    tmp_path: Path, real_jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "temporary").mkdir()
    files = {f"n{k % 6:08d}/{path.name}": path.read_bytes() for k, path in enumerate(real_jpegs[:96])}
    source = tar_of_tars(tmp_path / "set" / "ILSVRC2012_img_train.tar", files)
    before = hashlib.sha256(source.read_bytes()).digest()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))

    data = JpegSet("nested", build_index(source, workers=1, progress=False), (0.0,), (1.0,))
    assert (data.num_images, data.classes) == (96, [f"n{k:08d}" for k in range(6)])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 6))
    optimizer, losses = torch.optim.Adam(network.parameters(), 2e-3), []
    for batch in data.batches(Order(96, 32, views=1), RandomResizedCrop(24, 0), stop=30):
        assert batch.labels is not None
        loss = torch.nn.functional.cross_entropy(network(batch.images / 255), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        open_files = {
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)
        }
        assert {file for file in open_files if file.startswith(str(tmp_path))} <= {str(source)}
    assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:6])  # it learns these 96 pictures' labels
    assert os.listdir(tmp_path / "temporary") == []
    assert sorted(os.listdir(source.parent)) == [source.name, f"{source.name}.index"]
    assert hashlib.sha256(source.read_bytes()).digest() == before


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_member_bytes_is_read_by_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(b"".join(member_bytes(name, data) for name, data in FILES.items()) + END_MARK)
    assert contents(path) == FILES


def test_a_cut_damaged_or_compressed_tar_is_one_sentence(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t.tar", FILES).read_bytes()
    bad = tmp_path / "bad.tar"
    for length in range(0, len(whole.rstrip(b"\0")), 500):  # cut in a header, in data, between two members
        bad.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            list(walk(bad))
    flipped = bytearray(whole)
    flipped[1024 + 512] ^= 1
    bad.write_bytes(flipped)
    with pytest.raises(ValueError, match="no header at byte 1536"):
        list(walk(bad))
    for data, word in ((gzip.compress(whole), "gzip"), (lzma.compress(whole), "xz")):
        bad.write_bytes(data.ljust(2048, b"\1"))
        with pytest.raises(ValueError, match=f"compressed .{word}."):
            list(walk(bad))


def test_members_before_the_cut_have_been_seen(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    data = member_bytes("a", b"1") + member_bytes("b", b"2" * 600)
    path.write_bytes(data[:-512])
    members = walk(path, end=len(data) - 1000)
    assert next(members).name == "a"
    with pytest.raises(ValueError, match="inside member 'b'"):
        next(members)
