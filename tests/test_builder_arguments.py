"""Arguments for what builds a network: read as plain values, handed on, part of what a cache is known by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastanc.models import zoo
from fastanc.models.registered import register_network
from fastanc.parsing import dump, parse


def test_words_are_numbers_booleans_and_texts_by_their_looks(tmp_path: Path) -> None:
    words = "{rate: 0.1, size: [64, 32], lr: 1e-3, flag: true, off: no, none: null, text: '7', path: a/ü}"
    config = parse(["--student.kwargs", words, "--teacher.kwargs", "{half: true}"])
    assert config.student.kwargs == {
        "rate": 0.1,
        "size": [64, 32],
        "lr": 1e-3,
        "flag": True,
        "off": "no",
        "none": None,
        "text": "7",
        "path": "a/ü",
    }
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    again = parse(["--config_path", str(tmp_path / "again.yaml")])
    assert again.student.kwargs == config.student.kwargs
    assert type(again.student.kwargs["flag"]) is bool


@pytest.mark.parametrize("value", ["3", "[a]", "{a: {b: c}}", "a=b"])
def test_what_is_no_mapping_of_plain_values_is_one_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"student\.kwargs is .*: it takes \{name: value"):
        parse(["--student.kwargs", value])


def test_every_builder_gets_them() -> None:
    wide = zoo.build("wrn-10-1", num_classes=3, kwargs={"dropout": 0.25})
    assert {m.p for m in wide.bare.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    named = "torchvision:resnet18"
    assert isinstance(
        zoo.build(named, num_classes=3, image_px=32, kwargs={"zero_init_residual": True}).bare.fc,
        torch.nn.Linear,
    )
    with pytest.raises(ValueError, match=r"ResNet refuses width_per_group=128 \(BasicBlock only supports"):
        zoo.build(named, num_classes=3, kwargs={"width_per_group": 128})


def test_timm_gets_them_and_says_what_it_takes() -> None:
    pytest.importorskip("timm")
    tall = zoo.build("timm:test_vit", num_classes=3, image_px=64, kwargs={"embed_dim": 96, "img_size": 64})
    assert tall.feature_dim == 96
    with pytest.raises(ValueError, match=r"kwargs of timm:test_vit: VisionTransformer takes no 'droop', but"):
        zoo.build("timm:test_vit", num_classes=3, image_px=64, kwargs={"droop": 0.1})


def test_a_wrong_one_names_the_builder_and_what_it_takes() -> None:
    with pytest.raises(
        ValueError, match=r"kwargs of torchvision:resnet18: ResNet takes no 'drop', but .*groups"
    ):
        zoo.build("torchvision:resnet18", num_classes=3, kwargs={"drop": 1})
    with pytest.raises(ValueError, match=r"kwargs of wrn-10-1: WideResNet takes no 'drop', but dropout"):
        zoo.build("wrn-10-1", num_classes=3, kwargs={"drop": 0.1})
    with pytest.raises(ValueError, match=r"kwargs of wrn-10-1: WideResNet refuses dropout='much'"):
        zoo.build("wrn-10-1", num_classes=3, kwargs={"dropout": "much"})
    with pytest.raises(ValueError, match=r"num_classes is what the data set.* leave it out"):
        zoo.build("torchvision:resnet18", num_classes=3, kwargs={"num_classes": 7})


class Scaled(torch.nn.Module):
    """A network whose argument is in no weight."""

    def __init__(self, num_classes: int, gain: float = 1.0):
        super().__init__()
        self.gain, self.fc = gain, torch.nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.fc(x.mean((2, 3)))


def test_a_registered_network_gets_them_and_its_file_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastanc.models.registered._MAKERS", {})
    register_network("scaled_for_kwargs")(Scaled)
    network = zoo.build("scaled_for_kwargs", num_classes=4, image_px=8, kwargs={"gain": 3})
    assert network.bare.gain == 3
    zoo.save_weights(network, tmp_path / "student.safetensors")
    assert zoo.load_weights(tmp_path / "student.safetensors").bare.gain == 3
    assert zoo.own_classes("scaled_for_kwargs", tmp_path / "student.safetensors", kwargs={"gain": 3}) == 4
    with pytest.raises(ValueError, match=r"kwargs of scaled_for_kwargs: Scaled takes no 'gian', but gain"):
        zoo.build("scaled_for_kwargs", num_classes=4, image_px=8, kwargs={"gian": 3})


def test_a_teacher_is_another_one_with_other_arguments() -> None:
    from fastanc.teacher.frozen import FrozenTeacher

    network = zoo.build("wrn-10-1", num_classes=3).eval()
    plain, other = (
        FrozenTeacher(network=network, name="wrn-10-1", kwargs=k)._facts() for k in (None, {"dropout": 0.1})
    )
    assert "kwargs" not in plain  # a cache of before is known as it was
    assert other == {**plain, "kwargs": {"dropout": 0.1}}
