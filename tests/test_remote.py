"""Sources in stores: over a server that drops connections the index and the tar are those of a local copy."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastanc.cli import main
from fastanc.errors import sentence
from fastanc.files import remove
from fastanc.pipelines import remote_trouble
from fastanc.pipelines.index import build
from fastanc.pipelines.index.build import Index, build_index, index_path, open_index
from fastanc.pipelines.index.pack import pack
from fastanc.pipelines.remote_path import path_of
from fastanc.pipelines.remote_trouble import StoreError
from support.file_server import FileServer, served
from support.formats import FORMATS, write_parquet, zipped
from support.images import encoded, jpeg
from support.tars import write_tar

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

FILES = {f"{c}/{c}{k}.jpg": jpeg([n, k], (40 + k, 30)) for n, c in enumerate("ab") for k in range(16)}
SECRET = "X-Signature=geheim"
WEB = ("tar", "tar of tars", "zip", "zip with a map", "csv", "json lines")
"""Formats that lie in one file, or whose list names the others: a server of files lists no folder."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: indexes of stores are written there."""
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FASTANC_DATA", raising=False)
    monkeypatch.setattr(remote_trouble, "_WAITS_S", (0.01,) * 5)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder of what lies in the store."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def server(there: Path) -> Iterator[FileServer]:
    with served(there) as faults:
        yield faults


@pytest.fixture
def memory() -> Iterator[object]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def _noisy(k: int) -> bytes:
    """An image of about 60 KB."""
    from PIL import Image

    noise = np.random.default_rng(k).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), quality=90)


def _same(one: Index, other: Index) -> None:
    assert one.fingerprint == other.fingerprint
    assert (one.names(), one.classes, one.rejected) == (other.names(), other.classes, other.rejected)
    assert (one.files, one.notes, one.numbered) == (other.files, other.notes, other.numbered)
    for column in ("sizes", "labels", "crc32", "lengths", "offsets", "file_numbers", "note_numbers"):
        np.testing.assert_array_equal(getattr(one, column), getattr(other, column), err_msg=column)


def _upload(folder: Path, store: object) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())  # type: ignore[attr-defined]


def _taken(index: Index, url: str, source: Path, there: Path) -> None:
    """The copy beside the index is opened by it: nothing is indexed anew, and every image is where it says."""
    place = path_of(url).name
    written = index_path(path_of(url))
    shutil.copytree(there, Path.cwd(), dirs_exist_ok=True)
    for path in Path.cwd().rglob("*"):
        if path.is_file() and not path.name.endswith((".index", ".tsv")):
            path.touch()  # a copy has its own times
    taken = open_index(Path.cwd() / place)
    _same(taken, index)
    assert index_path(Path.cwd() / place) == written
    local = build_index(Path.cwd() / place, out=Path("again.index"), progress=False)
    assert local.places(range(len(local))) == taken.places(range(len(taken)))


@pytest.mark.parametrize("kind", FORMATS)
def test_of_a_store_the_index_is_that_of_a_copy_and_takes_one(
    there: Path, memory: object, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FORMATS[kind](there, FILES)
    expected = build_index(source, out=there.parent / "local.index", progress=False)
    _upload(there, memory)
    url = f"memory://bucket/{source.relative_to(there)}"
    url = url if kind != "parquet" else "memory://bucket/data/train-*.parquet"
    index = build_index(path_of(url), progress=False)
    _same(index, expected)
    if kind == "parquet":  # the pattern's folder is its own
        there = source.parent
    monkeypatch.setattr(build, "build_index", _never)
    _taken(index, url, source, there)


def _never(*args: object, **options: object) -> None:
    raise AssertionError("the set is indexed anew")


@pytest.mark.parametrize("kind", WEB)
def test_over_a_server_that_drops_every_third_connection_the_index_is_right(
    there: Path, server: FileServer, kind: str
) -> None:
    source = FORMATS[kind](there, FILES)
    expected = build_index(source, out=there.parent / "local.index", progress=False)
    server.drop_every = 3
    index = build_index(path_of(f"{server.url}/{source.name}"), progress=False)
    _same(index, expected)
    assert server.dropped > 1


def test_a_parquet_file_over_a_flaky_server_and_its_copy(there: Path, server: FileServer) -> None:
    source = write_parquet(there / "set.parquet", FILES)
    expected = build_index(source, out=there.parent / "local.index", progress=False)
    server.drop_every = 3
    index = build_index(path_of(f"{server.url}/set.parquet"), progress=False)
    _same(index, expected)
    assert server.dropped > 1
    _taken(index, f"{server.url}/set.parquet", source, there)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_splits_inside_of_an_archive_are_named_and_indexed(there: Path, memory: object, kind: str) -> None:
    files = {f"{split}/{name}": data for split in ("train", "val") for name, data in FILES.items()}
    path = {"tar": write_tar, "zip": zipped}[kind](there / f"set.{kind}", files)  # type: ignore[operator]
    expected = build_index(path / "val", out=there.parent / "local.index", progress=False)
    _upload(there, memory)
    url = f"memory://bucket/set.{kind}"
    with pytest.raises(ValueError, match=f"{url}/train and {url}/val"):
        build_index(path_of(url), progress=False)
    index = build_index(path_of(f"{url}/val"), progress=False)
    _same(index, expected)
    shutil.copy(path, Path.cwd())
    _same(open_index(Path.cwd() / path.name / "val"), expected)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_index(path_of("memory://bucket/none.zip/val"), progress=False)


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_every_image_is_read_once(there: Path, server: FileServer, kind: str) -> None:
    files = {f"{c}/{k}.jpg": _noisy(k) for c in "ab" for k in range(12)}
    write = {"tar": write_tar, "zip": zipped, "parquet": write_parquet}[kind]
    size = write(there / f"set.{kind}", files).stat().st_size  # type: ignore[operator]
    build_index(path_of(f"{server.url}/set.{kind}"), progress=False)
    assert server.sent < 1.25 * size
    assert server.sent > size - 1000


def test_several_processes_read_a_store(
    there: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_FEW", 0)
    monkeypatch.setattr(build, "_CHUNK", 8)
    source = zipped(there / "set.zip", FILES)
    expected = build_index(source, out=there.parent / "local.index", progress=False)
    server.drop_every, server.query = 3, SECRET
    index = build_index(path_of(f"{server.url}/set.zip?{SECRET}"), workers=2, progress=False)
    _same(index, expected)


@pytest.mark.parametrize("kind", [*WEB, "compressed tar", "tree"])
def test_a_pack_of_a_store_has_the_bytes_of_one_of_a_copy(
    there: Path, server: FileServer, memory: object, kind: str
) -> None:
    import gzip

    if kind == "compressed tar":
        source = there / "set.tar.gz"
        source.write_bytes(gzip.compress(write_tar(there / "plain", FILES).read_bytes()))
    else:
        source = FORMATS[kind](there, FILES)
    pack(source, Path("local.tar"), progress=False)
    for made in there.glob("*.index"):
        made.unlink()
    server.drop_every = 3
    url = f"{server.url}/{source.name}"
    if kind == "tree":
        _upload(there, memory)
        url = f"memory://bucket/{source.name}"
    pack(path_of(url), Path("set.tar"), progress=False)
    assert Path("set.tar").read_bytes() == Path("local.tar").read_bytes()
    left = {path.name for path in Path.cwd().iterdir()}
    assert left == {"local.tar", "local.tar.index", "set.tar", "set.tar.index"}


@pytest.mark.slow
def test_a_killed_pack_goes_on_and_reads_nothing_twice(there: Path, server: FileServer) -> None:
    files = {f"{c}/{k}.jpg": _noisy(k) for c in "ab" for k in range(70)}
    source = zipped(there / "set.zip", files)
    words = [sys.executable, "-m", "fastanc", "pack", f"{server.url}/set.zip", "set.tar", "--workers", "1"]
    part = Path("set.tar.source/set.zip.part")
    server.holds_from = 1 << 20
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as child:
        while not (part.exists() and part.stat().st_size):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    kept, size = part.stat().st_size, source.stat().st_size
    assert 0 < kept < size
    server.holds_from = 0
    server.released.set()
    server.sent = 0
    assert main(words[3:]) == 0
    assert server.sent < size - kept // 2
    pack(source, Path("local.tar"), progress=False)
    assert Path("set.tar").read_bytes() == Path("local.tar").read_bytes()
    assert not Path("set.tar.source").exists()


def test_a_copy_that_was_begun_goes_on_from_its_length(
    there: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastanc.pipelines.index import staging

    monkeypatch.setattr(staging, "BLOCK", 1 << 14)
    source = zipped(there / "set.zip", {f"{k}.jpg": _noisy(k) for k in range(12)})
    size = source.stat().st_size
    put, count = staging._put, 0

    def interrupted(*words: object) -> None:
        nonlocal count
        count += 1
        if count > size // (1 << 14) // 2:
            raise KeyboardInterrupt
        put(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(staging, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(path_of(f"{server.url}/set.zip"), Path("set.tar"), progress=False)
    kept = Path("set.tar.source/set.zip.part").stat().st_size
    assert kept > size // 3
    monkeypatch.setattr(staging, "_put", put)
    server.sent = 0
    pack(path_of(f"{server.url}/set.zip"), Path("set.tar"), progress=False)
    assert server.sent < size - kept // 2  # what was on its way when it was interrupted came for nothing
    pack(source, Path("local.tar"), progress=False)
    assert Path("set.tar").read_bytes() == Path("local.tar").read_bytes()


def test_another_file_is_not_added_to_a_copy_that_was_begun(
    there: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastanc.pipelines.index import staging

    zipped(there / "set.zip", FILES)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_fetch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(path_of(f"{server.url}/set.zip"), Path("set.tar"), progress=False)
    zipped(there / "set.zip", {**FILES, "a/new.jpg": jpeg(99)})
    with pytest.raises(ValueError, match="begun of: remove that folder"):
        pack(path_of(f"{server.url}/set.zip"), Path("set.tar"), progress=False)
    remove(Path("set.tar.source"))
    pack(path_of(f"{server.url}/set.zip"), Path("set.tar"), progress=False)


@pytest.mark.parametrize(
    ("others", "status", "tries"), [(False, None, 6), (True, None, 26), (True, 503, 6), (False, 404, 1)]
)
def test_a_dropped_connection_is_tried_more_often_while_others_hold(
    monkeypatch: pytest.MonkeyPatch, others: bool, status: int | None, tries: int
) -> None:
    monkeypatch.setattr(remote_trouble, "_QUICK_S", 0.001)
    remote_trouble.begin()
    asked = 0

    def dropped() -> None:
        nonlocal asked
        asked += 1
        if others:
            assert remote_trouble.tried(lambda: "answered", "other") == "answered"
        error = ConnectionResetError("reset")
        if status is not None:
            error.status = status  # type: ignore[attr-defined]
        raise error

    with pytest.raises(FileNotFoundError if status == 404 else StoreError):
        remote_trouble.tried(dropped, "this")
    remote_trouble.begin()
    assert asked == tries


def test_an_index_over_a_store_that_fails_goes_on(
    there: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_CHUNK", 4)
    source = zipped(there / "set.zip", {f"{c}/{k}.jpg": _noisy(k) for c in "ab" for k in range(8)})
    looked = build.look_at

    def failing(places: list[tuple[object, int, int]], full: bool) -> object:
        if places[0][1] > source.stat().st_size // 2:
            server.drop_every = 1
        return looked(places, full)  # type: ignore[arg-type]

    url = path_of(f"{server.url}/set.zip")
    with monkeypatch.context() as patch:
        patch.setattr(build, "look_at", failing)
        with pytest.raises(StoreError, match="6 tries failed") as raised:
            build_index(url, progress=False)
    assert str(url) in sentence(raised.value)
    server.drop_every, server.sent = 0, 0
    index = build_index(url, progress=False)
    assert server.sent < 0.7 * source.stat().st_size
    _same(index, build_index(source, out=there.parent / "local.index", progress=False))


@pytest.mark.parametrize("how", ["another", "cut"])
def test_a_file_that_changes_between_listing_and_reading_is_one_sentence(
    there: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source = zipped(there / "set.zip", FILES)
    looks = build._look_at_all

    def after_a_change(*words: object) -> object:
        data = source.read_bytes()
        source.write_bytes(data[:-1] + b"\1" if how == "another" else data[: len(data) // 2])
        return looks(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "_look_at_all", after_a_change)
    with pytest.raises(ValueError, match="changed while it was being read: run the same command again"):
        build_index(path_of(f"{server.url}/set.zip"), progress=False)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.zip", "missing.zip does not exist: give a folder or file of images"),
        ("refused.zip", "refused.zip: may not be read (403): give credentials"),
        ("broken.zip", "broken.zip: cannot be read, 6 tries failed"),
        ("loop.zip", "loop.zip: redirects without end: correct the URL"),
        ("page", "page is no kind of file that is known"),
        ("train-*.zip", "a server of files lists no folder"),
    ],
)
@pytest.mark.parametrize("job", ["index", "pack"])
def test_what_a_server_may_answer_is_one_sentence(
    there: Path, server: FileServer, capsys: pytest.CaptureFixture[str], name: str, said: str, job: str
) -> None:
    (there / "page").write_text("<!DOCTYPE html><title>Sign in</title>")
    server.answers = {"refused.zip": 403, "broken.zip": 500, "loop.zip": 302}
    words = [job, f"{server.url}/{name}", *(["set.tar"] if job == "pack" else [])]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out
    assert not list(Path.cwd().glob("*.index"))


@pytest.mark.parametrize("job", ["index", "pack"])
def test_a_server_without_ranges_is_one_sentence(
    there: Path, server: FileServer, capsys: pytest.CaptureFixture[str], job: str
) -> None:
    source = zipped(there / "set.zip", {f"{k}.jpg": _noisy(k) for k in range(60)})
    server.ranges = False
    assert main([job, f"{server.url}/set.zip", *(["set.tar"] if job == "pack" else [])]) == 2
    assert "sends no ranges of bytes" in capsys.readouterr().err
    assert server.sent < 2 * source.stat().st_size


def test_what_a_url_keeps_secret_is_shown_and_written_nowhere(
    there: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped(there / "set.zip", {**FILES, "a/broken.jpg": b"no image"})
    server.query, server.drop_every = SECRET, 3
    url = f"{server.url.replace('://', '://user:geheim@')}/set.zip?{SECRET}"
    assert main(["index", url]) == 0
    assert main(["pack", url, "set.tar"]) == 0
    server.drop_every = 1
    assert main(["index", url]) == 2
    server.query = "other"
    assert main(["index", url]) == 2
    assert main(["train", "--data.name", url]) == 2
    out, err = capsys.readouterr()
    assert "geheim" not in out + err
    assert f"{server.url}/set.zip" in err
    for path in Path.cwd().rglob("*"):
        assert not path.is_file() or b"geheim" not in path.read_bytes(), path


@pytest.mark.parametrize("scheme", ["nosuch", "file", "ftp", "github", "reference", "dir", "local", "data"])
def test_what_is_no_store_is_one_sentence(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("index", "pack"):
        out = ["out.tar"] if word == "pack" else []
        assert main([word, f"{scheme}://bucket/set.zip", *out]) == 2
        assert f"fastanc: {scheme}:// is no store that is read: give s3://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/set.zip", "pip install 'fastanc[remote]'"),
        ("s3://bucket/set.zip", "pip install 'fastanc[remote]' s3fs"),
        ("gs://bucket/set.zip", "pip install 'fastanc[remote]' gcsfs"),
        ("hf://datasets/a/b/set.zip", "pip install 'fastanc[remote]' huggingface_hub"),
        ("az://container/set.zip", "pip install 'fastanc[remote]' adlfs"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    for name in ("aiohttp", "s3fs", "gcsfs", "huggingface_hub", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, name, None)
    if not url.startswith("nosuch"):
        fsspec.registry._registry.pop(url.partition(":")[0], None) if hasattr(
            fsspec.registry, "_registry"
        ) else None
    assert main(["index", url]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_without_fsspec_its_install_is_said_and_nothing_imports_it_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert main(["index", "https://host/set.zip"]) == 2
    assert "pip install 'fastanc[remote]'" in capsys.readouterr().err
    code = "import sys, fastanc.cli, fastanc.pipelines.remote_path; print('fsspec' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_training_says_how_to_make_a_local_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data.name", "s3://bucket/data/train-*.parquet"]) == 2
    err = capsys.readouterr().err
    assert "training reads local disks" in err
    assert "fastanc pack 's3://bucket/data/train-*.parquet' train-all.tar" in err


@pytest.mark.slow
@pytest.mark.parametrize("job", ["index", "pack"])
def test_ctrl_c_does_not_wait_for_a_server_that_hangs(there: Path, server: FileServer, job: str) -> None:
    zipped(there / "set.zip", {f"{c}/{k}.jpg": _noisy(k) for c in "ab" for k in range(70)})
    server.holds_from = 1 << 20
    words = [sys.executable, "-m", "fastanc", job, f"{server.url}/set.zip"]
    words += ["set.tar"] if job == "pack" else []
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        while not server.holding:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        server.drop_every = 1  # what it still asks for would be tried again for 15 seconds
        asked = server.asked["set.zip"]
        server.released.set()
        _, err = child.communicate()
    assert child.returncode == 130
    assert err.splitlines()[-1] == "fastanc: interrupted; run the same command again to go on"
    assert server.asked["set.zip"] == asked


def test_what_a_list_names_outside_of_its_folder_is_not_written_there(memory: object) -> None:
    memory.pipe("/bucket/sub/list.csv", b"image,label\n../x.jpg,a\n")  # type: ignore[attr-defined]
    memory.pipe("/bucket/x.jpg", jpeg(1))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="lies outside of its folder"):
        pack(path_of("memory://bucket/sub/list.csv"), Path("sub/set.tar"), progress=False)
    assert [path.name for path in Path.cwd().rglob("*.jpg")] == []
