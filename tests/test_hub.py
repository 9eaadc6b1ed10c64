"""transformers' image classifiers: a folder that it saved, without a network, with what it says of its images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastanc.models import zoo
from fastanc.models.names import check_name, has_published, without_published

transformers = pytest.importorskip("transformers")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def saved(folder: Path, kind: str, classes: int = 5) -> torch.nn.Module:
    """A tiny classifier as transformers saves it, with a preprocessor and a model card beside it."""
    small = {"num_labels": classes}
    configs = {
        "ViT": lambda: transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, **small,
        ),
        "ResNet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", **small
        ),
        "ConvNext": lambda: transformers.ConvNextConfig(
            hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4, **small
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}ForImageClassification")(configs[kind]()).eval()
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    (folder / "README.md").write_text("---\ntags: [vision]\nlicense: apache-2.0\n---\n# A network\n")
    return network


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViT", "ResNet", "ConvNext"])
def test_a_folder_is_its_own_network_with_its_statistics_and_its_head(tmp_path: Path, kind: str) -> None:
    own, name = saved(tmp_path / "Ünd so", kind), f"hf:{tmp_path / 'Ünd so'}"
    assert zoo.own_classes(name, None) == 5
    tapped = zoo.build(name, num_classes=5, image_px=32).eval()
    images = pictures()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = own((images / 255 - mean) / std).logits
    out = tapped(images)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert tapped.head is not None
    torch.testing.assert_close(tapped.head(out.features), expected, rtol=1e-4, atol=1e-5)
    assert tapped.licence == "apache-2.0 by its model card"
    assert "preprocessor_config.json" in tapped.normalised_by
    bare = zoo.build(name, num_classes=0, image_px=32).eval()
    torch.testing.assert_close(bare(images).features, out.features, rtol=1e-4, atol=1e-5)


def test_a_student_of_other_classes_is_written_and_read_again(tmp_path: Path) -> None:
    saved(tmp_path / "net", "ResNet")
    name = f"hf:{tmp_path / 'net'}"
    with pytest.raises(ValueError, match="know 5 classes and the data set has 3"):
        zoo.build(name, num_classes=3, image_px=32)
    student = zoo.build(name, num_classes=3, image_px=32, new_head=True).eval()
    assert student.new_head
    zoo.save_weights(student, tmp_path / "student.safetensors")
    again = zoo.load_weights(tmp_path / "student.safetensors").eval()
    images = pictures()
    with torch.no_grad():
        assert torch.equal(again(images).logits, student(images).logits)
    untrained = zoo.build(without_published(name), num_classes=4, in_channels=1, image_px=32)
    assert (untrained.num_classes, untrained.in_channels) == (4, 1)


def test_names_are_judged_before_anything_is_imported(tmp_path: Path) -> None:
    assert has_published("hf:microsoft/resnet-18")
    check_name("hf:microsoft/resnet-18")
    with pytest.raises(ValueError, match="neither a folder that is here nor a name"):
        check_name("hf:/no/such/folder")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_name(f"hf:{tmp_path}")


def test_what_cannot_be_had_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastanc.models.hub.answers", lambda url: False)
    with pytest.raises(FileNotFoundError, match=r"hf:nobody/nothing is no folder .* could not be fetched"):
        zoo.build("hf:nobody/nothing", num_classes=5)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match=r"is no network that transformers reads"):
        zoo.build(f"hf:{tmp_path}", num_classes=5)
    saved(tmp_path / "net", "ResNet")
    (tmp_path / "net" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no folder with a config.json and weights"):
        zoo.build(f"hf:{tmp_path / 'net'}", num_classes=5, image_px=32)
    saved(tmp_path / "net", "ResNet")
    with pytest.raises(ValueError, match=r"kwargs of hf:.*ResNetForImageClassification.* 'droop'"):
        zoo.build(f"hf:{tmp_path / 'net'}", num_classes=5, image_px=32, kwargs={"droop": 1})


def test_a_folder_and_a_repository_of_timm_are_their_own_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    own = timm.create_model("resnet10t", num_classes=5).eval()
    own.pretrained_cfg |= {"mean": MEAN, "std": STD, "license": "mit"}
    save_for_hf(own, str(tmp_path / "a net"), safe_serialization=True)
    # The hub's cache, as it is after a repository was fetched; no server is asked.
    snapshot = tmp_path / "hub" / "models--somebody--net" / "snapshots" / "abc"
    shutil.copytree(tmp_path / "a net", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("fastanc.models.libraries.answers", lambda url: False)
    images = pictures()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = own((images / 255 - mean) / std)
        for name in (f"timm:local-dir:{tmp_path / 'a net'}", "timm:hf-hub:somebody/net"):
            check_name(name)
            assert has_published(name)
            assert zoo.own_classes(name, None) == 5
            tapped = zoo.build(name, num_classes=5, image_px=32).eval()
            torch.testing.assert_close(tapped(images).logits, expected, rtol=1e-4, atol=1e-5)
            untrained = zoo.build(without_published(name), num_classes=3, image_px=32)
            assert untrained.num_classes == 3
            student = zoo.build(name, num_classes=5, image_px=32, new_head=True)
            zoo.save_weights(student, tmp_path / "student.safetensors")
            again = zoo.load_weights(tmp_path / "student.safetensors").eval()
            assert torch.equal(again(images).logits, student.eval()(images).logits)
    with pytest.raises(FileNotFoundError, match="connect to the network once"):
        zoo.build("timm:hf-hub:somebody/other", num_classes=5)
    for wrong in ("timm:hf-hub:net", f"timm:local-dir:{tmp_path}"):
        with pytest.raises(ValueError, match="is no repository|no config.json"):
            check_name(wrong)
