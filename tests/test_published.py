"""Published weights: taken by name from a library's cache or server, and one sentence where there is neither."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastanc.models.names import has_published, without_published
from fastanc.models.published import answers
from fastanc.models.zoo import build, own_classes

TINY = "test_vit.r160_in1k"  # of timm's, 0.4 million parameters


def nothing_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("torchvision.models._api.load_state_dict_from_url", "fastanc.models.libraries.answers"):
        monkeypatch.setattr(place, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, whose server answers nobody."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("fastanc.models.libraries.answers", lambda url: False)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", [f"timm:{TINY}", f"timm:{TINY}@pretrained", "timm:test_vit@pretrained"])
def test_timms_weights_out_of_reach_are_one_sentence(
    hub: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def search(host: object, *rest: object, **more: object) -> None:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", search)
    with pytest.raises(
        FileNotFoundError, match=rf"timm:test_vit.* are not in the cache .*{TINY}.*teacher\.weights"
    ) as e:
        build(name, num_classes=1000, image_px=160)
    assert "\n" not in str(e.value)
    assert asked == []  # so that nobody waits for its retries


def test_timms_weights_in_the_cache_are_read_without_a_network(hub: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    state = timm.create_model("test_vit").state_dict()
    cached, commit = hub / f"models--timm--{TINY}", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    save_file(state, cached / "snapshots" / commit / "model.safetensors")
    for name in (f"timm:{TINY}", "timm:test_vit@pretrained"):
        network = build(name, num_classes=1000, image_px=160)
        assert all(torch.equal(state[key], value) for key, value in network.bare.state_dict().items())
        assert network.mean == (0.5,) * 3
        assert own_classes(name, None, image_px=160) == 1000


@pytest.mark.parametrize(("name", "px"), [(f"timm:{TINY}", 160), ("torchvision:resnet18@IMAGENET1K_V1", 64)])
def test_a_file_comes_in_the_place_of_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, px: int
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    nothing_fetched(monkeypatch)
    plain = build(without_published(name), num_classes=7, image_px=px)
    torch.save(plain.bare.state_dict(), tmp_path / "w.pth")
    assert own_classes(name, tmp_path / "w.pth", image_px=px) == 7
    network = build(name, num_classes=7, image_px=px, weights=tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(network.bare.parameters(), plain.bare.parameters()))
    assert network.published_by


def test_a_name_with_a_tag_asks_for_published_weights() -> None:
    asks = ("timm:resnet50.a1_in1k", "timm:resnet50@pretrained", "torchvision:resnet18@IMAGENET1K_V1")
    for name in asks:
        assert has_published(name)
        assert not has_published(without_published(name))
    for name in ("timm:resnet50", "torchvision:resnet18", "resnet20", "wrn-10-4-drop0.3", "object:a.b.C"):
        assert not has_published(name)
        assert without_published(name) == name


def test_a_server_answers_or_does_not() -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_port}/x", seconds=60)
        server.shutdown()
        assert not answers(
            f"http://127.0.0.1:{silent.getsockname()[1]}/x", seconds=0.1
        )  # takes it, says nothing
        gone = silent.getsockname()[1]
    assert not answers(f"http://127.0.0.1:{gone}/x", seconds=60)
    assert not answers("no url", seconds=60)
