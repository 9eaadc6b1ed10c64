"""DALI's graph of a GPU, as far as a machine without one can tell: what it is made of, and its pixels on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import PLANS, JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import CentreCrop, RandomResizedCrop, ViewRule
from support.images import encoded, odd_picture, put

decoding = pytest.importorskip("fastanc.pipelines.jpeg.decoder", reason="DALI is not installed")
N = 9
RULES = [RandomResizedCrop(48, seed=11), CentreCrop(48, 56)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> JpegSet:
    files = {f"class/{i}.jpg": encoded(odd_picture(i), quality=90) for i in range(N)}
    tree = put(tmp_path_factory.mktemp("sets") / "tree", files)
    return JpegSet("toy", build_index(tree, workers=1, progress=False), (0,), (1,))


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("plan", PLANS)
def test_what_is_given_to_the_gpu_s_operators_stays_on_the_host(
    plan: str, rule: ViewRule, views: int
) -> None:
    graph = decoding._graph(
        lambda: None, JpegOptions(decode=plan), rule, views=views, batch_size=4, num_threads=1, device_id=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DALI warns of an input that nobody reads
        graph._build_graph()
    assert [operator.name for operator in graph._ops if "Constant" in operator.name] == []
    on_gpu = [operator for operator in graph._ops if operator._op.device == "gpu"]
    assert len(on_gpu) >= 2 * views  # a resize and a flip each
    for operator in on_gpu:
        pixels, *arguments = operator.inputs
        assert pixels.device == "gpu"
        assert {argument.device for argument in arguments} <= {"cpu"}


def drawn(data: JpegSet, plan: str, rule: ViewRule, views: int) -> Tensor:
    """The pixels [B, S, S, 3] of the graph of a GPU, all of whose operators run on the CPU."""
    order, device = Order(N, 8, seed=2, views_per_image=views), torch.device("cpu")
    options = JpegOptions(decode=plan, threads=1)
    run = decoding.Run(
        data.index,
        order,
        rule,
        range(1),
        largest=8,
        views=views,
        device=device,
        options=JpegOptions(decode="cpu"),
    )
    run._device, run._options = torch.device("cuda"), options
    graph = decoding._graph(
        run._source, options, rule, views=views, batch_size=8, num_threads=1, device_id=None
    )
    outputs = [torch.from_dlpack(view.as_tensor()) for view in graph.run()]
    return torch.stack(outputs, 1).flatten(0, 1).clone()


@pytest.fixture
def decoders_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(decoder: Callable[..., Any]) -> Callable[..., Any]:
        def decode(*inputs: Any, **words: Any) -> Any:
            for word in ("hw_decoder_load", "jpeg_fancy_upsampling"):
                words.pop(word, None)
            return decoder(*inputs, **words | {"device": "cpu"})

        return decode

    for name in ("image", "image_slice"):
        monkeypatch.setattr(decoding.fn.decoders, name, on_cpu(getattr(decoding.fn.decoders, name)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.usefixtures("decoders_on_cpu")
def test_named_corners_cut_the_bits_of_positional_ones(
    data: JpegSet, rule: ViewRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {(plan, views): drawn(data, plan, rule, views) for plan in ("mixed", "cpu") for views in (1, 2)}

    def positional(cut: Callable[..., Any]) -> Callable[..., Any]:
        return lambda pixels, *, start, shape, **words: cut(pixels, start, shape, **words)

    monkeypatch.setattr(decoding.fn, "slice", positional(decoding.fn.slice))
    monkeypatch.setattr(decoding.fn.decoders, "image_slice", positional(decoding.fn.decoders.image_slice))
    for (plan, views), pixels in named.items():
        assert torch.equal(drawn(data, plan, rule, views), pixels)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.usefixtures("decoders_on_cpu")
def test_a_box_of_a_whole_image_is_the_box_decoded_alone(data: JpegSet, views: int) -> None:
    rule = RULES[0]
    assert torch.equal(drawn(data, "mixed", rule, views), drawn(data, "mixed_roi", rule, views))
