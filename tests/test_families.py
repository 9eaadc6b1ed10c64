"""Families of torchvision and timm: their features make their logits and their stages are maps, or it is said why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks.taps import row, torchvision_names
from fastanc.models import zoo
from fastanc.parsing import parse
from fastanc.train import train
from support.tiny_run import LENETS, as_words

VIT = "timm:vit_tiny_patch16_224"
LIBRARIES = {  # the layer that reads the features; None where there is no such layer
    "torchvision:alexnet": "classifier.6",
    "torchvision:convnext_tiny": "classifier.2",
    "torchvision:densenet121": "classifier",
    "torchvision:efficientnet_b0": "classifier.1",
    "torchvision:googlenet": "fc",
    "torchvision:mnasnet0_5": "classifier.1",
    "torchvision:mobilenet_v3_small": "classifier.3",
    "torchvision:regnet_y_400mf": "fc",
    "torchvision:shufflenet_v2_x0_5": "fc",
    "torchvision:squeezenet1_1": None,
    "torchvision:swin_t": "head",
    "torchvision:vgg11": "classifier.6",
    "timm:cait_xxs24_224": "head",
    "timm:coat_tiny": "head",
    "timm:crossvit_tiny_240": None,
    "timm:deit_tiny_distilled_patch16_224": None,
    "timm:deit_tiny_patch16_224": "head",
    "timm:densenet121": "classifier",
    "timm:dla46x_c": "fc",
    "timm:dpn48b": "classifier",
    "timm:edgenext_xx_small": "head.fc",
    "timm:efficientformerv2_s0": None,
    "timm:fastvit_t8": "head.fc",
    "timm:ghostnet_050": "classifier",
    "timm:gmlp_ti16_224": "head",
    "timm:hrnet_w18_small": "classifier",
    "timm:inception_next_atto": "head.fc2",
    "timm:levit_128s": None,
    "timm:levit_256d": "head.linear",
    "timm:mobilevit_xxs": "head.fc",
    "timm:pit_ti_224": "head",
    "timm:poolformerv2_s12": "head.fc",
    "timm:repvgg_a0": "head.fc",
    "timm:repvit_m1": None,
    "timm:resnetv2_18": "head.fc",
    "timm:swin_tiny_patch4_window7_224": "head.fc",
    "timm:test_convnext": "head.fc",
    "timm:test_efficientnet": "classifier",
    "timm:test_nfnet": "head.fc",
    "timm:test_resnet": "fc",
    "timm:test_vit": "head",
    "timm:xcit_nano_12_p8_224": "head",
}
LARGE = {
    "torchvision:inception_v3": "fc",
    "torchvision:maxvit_t": "classifier.5",
    "torchvision:vit_b_32": "heads.head",
    "timm:beit_base_patch16_224": "head",
    "timm:efficientformer_l1": None,
    "timm:inception_resnet_v2": "classif",
    "timm:inception_v3": "fc",
    "timm:inception_v4": "last_linear",
    "timm:vgg11": "head.fc",
    "timm:volo_d1_224": None,
}


def assert_right(name: str, head: str | None) -> None:
    if name.startswith("timm:"):
        timm = pytest.importorskip("timm")
        if not timm.is_model(name.removeprefix("timm:")):
            pytest.skip("this timm does not have it")
    found = row(name)
    assert found["features_of"] == (head or "logits only"), found
    if head is None:
        assert "more than one linear layer's output" in found["why"]
    else:
        assert found["difference"] <= 1e-4


@pytest.mark.parametrize("name", LIBRARIES)
def test_features_and_head_make_the_logits(name: str) -> None:
    assert_right(name, LIBRARIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_features_and_head_make_the_logits_of_large_ones(name: str) -> None:
    assert_right(name, LARGE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_names())
def test_every_classifier_of_torchvision_is_tapped_right(name: str) -> None:
    found = row(name)
    if "squeezenet" in name:
        assert found["features_of"] == "logits only"
    else:
        assert found["difference"] <= 1e-4, found


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("timm:swin_tiny_patch4_window7_224", "auto"),
        ("torchvision:swin_t", ("features.1", "features.3", "features.5", "features.7")),
        ("timm:test_mambaout", "auto"),
    ],
)
def test_stage_maps_of_a_transformer_have_their_channels_first(name: str, stages: object) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = zoo.build(name, num_classes=5, image_px=64, stages=stages).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        maps = network(torch.rand(2, 3, 64, 64)).stages
    assert [m.shape[2] for m in maps] == [m.shape[3] for m in maps] == [16, 8, 4, 2]
    assert network.stage_channels() == tuple(m.shape[1] for m in maps)
    last = network.bare.get_submodule(network.stage_names[-1])
    kept: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        again = network(torch.rand(2, 3, 64, 64)).stages[-1]
    hook.remove()
    assert torch.equal(again, kept[0].permute(0, 3, 1, 2))


def test_stages_are_not_single_convolutions() -> None:
    with pytest.raises(ValueError, match="MNASNet has no stages that fastanc knows: name the modules"):
        zoo.build("torchvision:mnasnet0_5", num_classes=5, stages="auto")


def test_a_transformer_is_built_for_the_images_it_gets() -> None:
    pytest.importorskip("timm")
    for name in (VIT, "torchvision:vit_b_32"):
        network = zoo.build(name, num_classes=5, in_channels=1, image_px=64).eval()
        assert network(torch.rand(2, 1, 64, 64)).logits.shape == (2, 5)
    for px, tokens in ((224, 197), (64, 17)):
        assert zoo.build(VIT, num_classes=5, image_px=px).bare.pos_embed.shape[1] == tokens


@pytest.mark.parametrize(
    ("name", "px", "reason", "usual"),
    [
        ("torchvision:inception_v3", 64, "Kernel size can't be greater than actual input size", 299),
        ("torchvision:maxvit_t", 64, ".*", 224),
        ("torchvision:vit_b_32", 40, r"Wrong image height! Expected 224 but got 40", 224),
        (VIT, 8, r"Input height \(8\) doesn't match model \(224\)", 224),
        ("timm:inception_v4", 64, "Kernel size can't be greater than actual input size", 299),
    ],
)
def test_a_size_that_a_network_cannot_read_is_one_sentence(
    name: str, px: int, reason: str, usual: int
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=rf"{name} cannot read images of {px} x {px} .*{reason}") as caught:
        zoo.build(name, num_classes=5, image_px=px)
    assert f"set data.image_px to a size that it takes, e.g. {usual}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_weights_at_another_size_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.vit_b_32().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: state)
    monkeypatch.setattr("fastanc.models.libraries.answers", lambda url: True)
    with pytest.raises(ValueError, match="Wrong image height! Expected 224 but got 64"):
        zoo.build("torchvision:vit_b_32@IMAGENET1K_V1", num_classes=1000, image_px=64)


NAMED = {  # a network, and what its library normalises with
    "torchvision:alexnet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "timm:test_resnet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "timm:test_vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "timm:resnet18": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("name", NAMED)
def test_weights_of_any_source_are_normalised_as_their_library_says(name: str, tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    shape = {"num_classes": 5, "image_px": 64}
    default = {"default_mean": (0.1, 0.2, 0.3), "default_std": (0.4, 0.5, 0.6)}
    scratch = zoo.build(name, **shape, **default)
    assert (scratch.mean, scratch.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    bare, told = tmp_path / "bare.pt", tmp_path / "told.safetensors"
    torch.save(scratch.bare.state_dict(), bare)
    zoo.save_weights(scratch, told)
    read = zoo.build(name, weights=bare, **shape, **default)
    assert (read.mean, read.std) == NAMED[name]
    assert zoo.build(name, weights=told, **shape).mean == (0.1, 0.2, 0.3)
    explicit = zoo.build(name, weights=bare, mean=(0.9, 0.9, 0.9), **shape, **default)
    assert (explicit.mean, explicit.std) == ((0.9, 0.9, 0.9), NAMED[name][1])


def test_weights_for_another_number_of_channels_are_normalised_by_the_data(tmp_path: Path) -> None:
    grey = zoo.build("torchvision:resnet18", num_classes=5, in_channels=1)
    torch.save(grey.bare.state_dict(), tmp_path / "grey.pt")
    shape = {"num_classes": 5, "in_channels": 1, "default_mean": (0.1,), "default_std": (0.2,)}
    again = zoo.build("torchvision:resnet18", weights=tmp_path / "grey.pt", **shape)
    assert (again.mean, again.std) == ((0.1,), (0.2,))


def _run(folder: Path, name: str, **options: str) -> Path:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("timm")
    fields = {**LENETS, "run.log_every": "1", "run.max_steps": "1", "data.batch": "16", "run.name": name}
    fields |= {"run.out": str(folder), "teacher.cache_dir": str(folder / "cache"), **options}
    return train(parse(as_words(fields)))


def _first_loss(folder: Path) -> float:
    lines = map(json.loads, (folder / "metrics.jsonl").open())
    return next(line["student/soft"] for line in lines if line["kind"] == "train")


@pytest.mark.parametrize("teacher", ["timm:deit_tiny_distilled_patch16_224", "timm:resnetv2_18"])
def test_a_cache_of_two_heads_or_a_convolution_gives_the_losses_of_the_network(
    teacher: str, tmp_path: Path
) -> None:
    options = {"method.type": "kd", "teacher.name": teacher}
    options |= {"teacher.rows": "fp32", "run.max_steps": "0", "schedule.epochs": "1"}
    options |= {"data.share": "0.05", "method.alpha": "1"}
    losses = [
        _first_loss(_run(tmp_path, cache, **options, **{"teacher.cache": cache}))
        for cache in ("off", "fill", "read")
    ]
    assert losses[0] > 0
    # A convolution and the product with its weights sum in different orders: logits of 0.4 differ by some 1e-7, of
    # which a KL at temperature 4 makes four times as much.
    assert losses == pytest.approx([losses[0]] * 3, abs=4e-6)
    assert losses[1] == losses[2]


@pytest.mark.parametrize("method", ["fitnets", "attention_transfer"])
def test_methods_of_stage_maps_refuse_tokens_before_they_train(method: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"stage 'blocks.0' of timm:test_vit gives token sequences"
    ) as caught:
        _run(tmp_path, "x", **{"method.type": method, "teacher.name": "timm:test_vit"})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_file_of_an_earlier_version_does_not_say_which_layer_is_the_head(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    network = zoo.build("timm:deit_tiny_distilled_patch16_224", num_classes=5, image_px=32)
    network.tap_head("head_dist")  # as was guessed
    zoo.save_weights(network, tmp_path / "student.safetensors")
    again = zoo.load_weights(tmp_path / "student.safetensors")
    assert again.head is None
    assert "(head and head_dist are 5 wide)" in again.no_head
