"""A server of files on this machine, with the faults that servers have; it counts what it sends."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class FileServer:
    """What is served, how badly, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.ranges = True
        self.drop_every = 0
        """Of every so many answers one ends in the middle of its bytes."""
        self.answers: dict[str, int] = {}
        """File -> the status it is answered with."""
        self.query = ""
        """What every URL must end in."""
        self.holds_from = 0
        """Ranges that start there or later wait until `released`; 0 for none."""
        self.holding = False
        self.released = threading.Event()
        self.sent = 0
        self.dropped = 0
        self.asked = Counter[str]()
        self._count, self._lock = 0, threading.Lock()

    def drops(self) -> bool:
        with self._lock:
            self._count += 1
            drops = bool(self.drop_every) and self._count % self.drop_every == 0
            self.dropped += drops
            return drops


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: FileServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        faults, parts = self.faults, urlsplit(self.path)
        name = unquote(parts.path).lstrip("/")
        with faults._lock:
            faults.asked[name] += 1
        path = faults.folder / name
        status = faults.answers.get(name, 200 if path.is_file() else 404)
        if faults.query and parts.query != faults.query:
            status = 403
        if status != 200:
            self._say(status, {"Location": self.path} if 300 <= status < 400 else {})
            return
        size, headers = path.stat().st_size, {"ETag": f'"{path.stat().st_mtime_ns}"'}
        match = _RANGE.fullmatch(self.headers.get("Range", "")) if faults.ranges else None
        start, end = 0, size
        if match:
            start, end = int(match[1]), min(int(match[2] or size) + 1, size)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if faults.holds_from and start >= faults.holds_from:
                faults.holding = True
                faults.released.wait()
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        self._say(206 if match else 200, headers, data, with_body)

    def _say(self, status: int, headers: dict[str, str], data: bytes = b"", with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        drops = with_body and self.faults.drops()
        self.end_headers()
        if with_body:
            part = data[: len(data) // 2] if drops else data
            self.wfile.write(part)
            with self.faults._lock:
                self.faults.sent += len(part)
        self.close_connection = drops or self.close_connection


@contextmanager
def served(folder: Path) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    faults = FileServer(folder)
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away is no matter
    threading.Thread(target=server.serve_forever, daemon=True).start()
    faults.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
