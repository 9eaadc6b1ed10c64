"""Taps: what a network says of its images equals what a plain forward pass computes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fastanc.batch import Batch
from fastanc.methods.base import Method
from fastanc.models import zoo
from fastanc.models.resnet_cifar import PreActResNet
from fastanc.models.taps import Adapted, Tapped

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(n: int = 2, px: int = 32) -> Tensor:
    pixels = torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)  # NHWC in memory, as the input pipeline gives it


def small(stages: str | tuple[str, ...] = "auto") -> Tapped:
    return Tapped(PreActResNet(8, 10), stages=stages, mean=MEAN, std=STD, name="resnet8")


def test_taps_equal_a_manual_forward_of_torchvision() -> None:
    bare = torchvision.models.resnet18(num_classes=7)
    mean, std = (0.5, 0.25, 0.5), (0.25, 0.5, 0.125)  # exact in fp32, in which a network keeps them
    tapped = Tapped(bare, stages="auto", mean=mean, std=std).double().eval()
    x = images(px=64)
    with torch.no_grad():
        out = tapped(x)
        y = torchvision.transforms.functional.normalize(x.double() / 255, list(mean), list(std))
        y = bare.maxpool(bare.relu(bare.bn1(bare.conv1(y))))
        stages = []
        for layer in (bare.layer1, bare.layer2, bare.layer3, bare.layer4):
            y = layer(y)
            stages.append(y)
        features = bare.avgpool(y).flatten(1)
    assert out.stages is not None
    assert out.features is not None
    for got, wanted in zip(out.stages, stages, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(out.features, features, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(out.logits, bare.fc(features), atol=1e-12, rtol=1e-10)
    assert tapped.feature_dim == 512
    assert tapped.num_classes == 7


def test_head_takes_the_features_to_the_logits_exactly() -> None:
    tapped = small(()).eval()
    out = tapped(images())
    assert tapped.head is not None
    assert torch.equal(tapped.head(out.features), out.logits)
    assert out.stages is None


def test_normalisation_is_that_of_float64_and_keeps_the_memory_format() -> None:
    tapped = small()
    x = images()
    wanted = (x.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    got = tapped.normalise(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), wanted, atol=2e-6, rtol=0)
    torch.testing.assert_close(tapped.normalise(x.float() / 255).double(), wanted, atol=2e-6, rtol=0)


def test_no_tensor_outlives_its_pass() -> None:
    tapped = small()
    out = tapped(images())
    kept = [weakref.ref(t) for t in (out.features, *out.stages)]
    del out
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_recomputation_in_backward_gives_the_same_gradients_and_leaves_nothing() -> None:
    tapped, x = small(), images()
    twin = copy.deepcopy(tapped)
    out = tapped(x)
    (out.features.sum() + out.logits.sum()).backward()

    def both(x: Tensor) -> Tensor:
        out = twin(x)
        return out.features.sum() + out.logits.sum()

    checkpoint(both, x, use_reentrant=False).backward()
    for a, b in zip(tapped.parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    assert twin._frames.open == []


def test_a_pass_inside_a_pass_and_a_failed_pass_keep_their_tensors_apart() -> None:
    tapped = small().eval()
    x, other = images(), images()
    wanted, inner = tapped(x), []

    def pass_once(*args: object) -> None:
        handle.remove()
        inner.append(tapped(other))

    handle = tapped.bare.bn.register_forward_pre_hook(pass_once)
    out = tapped(x)
    assert torch.equal(out.features, wanted.features)
    assert torch.equal(out.stages[0], wanted.stages[0])
    assert torch.equal(inner[0].features, tapped(other).features)
    with pytest.raises(RuntimeError):
        tapped(torch.rand(2, 5, 32, 32))
    assert torch.equal(tapped(x).features, wanted.features)


def test_compiles_without_a_graph_break() -> None:
    tapped, x = small(), images()
    assert torch._dynamo.explain(tapped)(x).graph_break_count == 0
    student = Adapted(small(), 48).eval()
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    for _ in range(2):
        for got, wanted in zip(compiled(x)[:2], student(x)[:2]):
            assert torch.equal(got, wanted)


def test_exports_and_still_works_afterwards() -> None:
    tapped, x = small().eval(), images()
    wanted = tapped(x)
    exported = torch.export.export(tapped, (x,)).module()
    for got in (exported(x), tapped(x)):
        assert torch.equal(got.logits, wanted.logits)
        assert torch.equal(got.features, wanted.features)
        assert torch.equal(got.stages[2], wanted.stages[2])


def test_a_copy_and_a_pickle_have_taps_of_their_own() -> None:
    tapped, x = small().eval(), images()
    wanted = tapped(x)
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        assert torch.equal(twin(x).stages[1], wanted.stages[1])
        with torch.no_grad():
            twin.bare.conv1.weight.zero_()
        assert not torch.equal(twin(x).features, wanted.features)
        assert torch.equal(tapped(x).features, wanted.features)
        assert tapped._frames.open == twin._frames.open == []


def test_ddp_trains_as_the_plain_network(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tapped, x = small().to(memory_format=torch.channels_last), images()
        plain = copy.deepcopy(tapped)
        wrapped = DistributedDataParallel(tapped, gradient_as_bucket_view=True, static_graph=True)
        for network in (plain, wrapped):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                out = network(x)
                (out.logits.square().sum() + out.features.mean()).backward()
                optimizer.step()
        for a, b in zip(plain.parameters(), tapped.parameters()):
            assert torch.equal(a, b)
    finally:
        dist.destroy_process_group()


def test_state_dict_is_the_bare_networks_under_a_prefix() -> None:
    tapped = small()
    bare = PreActResNet(8, 10)
    assert list(tapped.state_dict()) == [f"bare.{key}" for key in bare.state_dict()]
    bare.load_state_dict({k.removeprefix("bare."): v for k, v in tapped.state_dict().items()})
    tapped.eval()
    assert torch.equal(bare.eval()(tapped.normalise(images_ := images())), tapped(images_).logits)


def test_a_network_without_a_linear_head_still_has_logits() -> None:
    tapped = Tapped(torchvision.models.squeezenet1_1(num_classes=5), mean=MEAN, std=STD, num_classes=5)
    out = tapped(images(px=64))
    assert out.logits.shape == (2, 5)
    assert (tapped.head, tapped.feature_dim, out.features) == (None, None, None)
    with pytest.raises(ValueError, match="no linear head"):
        Adapted(tapped, 8)
    with pytest.raises(ValueError, match="num_classes"):
        Tapped(torchvision.models.squeezenet1_1(), mean=MEAN, std=STD)


def test_the_last_linear_layer_is_no_head_when_it_does_not_give_the_logits() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 4, 1))
    tapped = Tapped(network.append(nn.Flatten()), mean=MEAN, std=STD, num_classes=4)
    assert tapped.head is None
    assert tapped(images(px=2)).features is None


def test_an_explicit_head_and_stages_are_obeyed() -> None:
    network = torchvision.models.vgg11(num_classes=5, dropout=0.0)
    tapped = Tapped(network, head="classifier.3", stages=("features.5", "features.10"), mean=MEAN, std=STD)
    x = images()
    out = tapped.eval()(x)
    flat = network.avgpool(network.features(tapped.normalise(x))).flatten(1)
    assert torch.equal(out.features, network.classifier[:3](flat))
    assert tapped.feature_dim == 4096
    assert tapped.stage_channels() == (128, 256) == tuple(s.shape[1] for s in out.stages)


def test_stage_channels_disturb_nothing() -> None:
    tapped = small().train()
    before = {key: value.clone() for key, value in tapped.state_dict().items()}
    assert tapped.stage_channels(image_px=16) == (16, 32, 64)
    assert tapped.training
    for key, value in tapped.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_wrong_name_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="resnet8 has no module 'layer9' to tap: its parts are conv1"):
        small(("layer9",))
    with pytest.raises(ValueError, match="head 'conv1' of PreActResNet is no nn.Linear"):
        Tapped(PreActResNet(8, 10), head="conv1", mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="name the modules to tap in `stages`, e.g. features"):
        Tapped(torchvision.models.mobilenet_v2(), stages="auto", mean=MEAN, std=STD)


def test_an_adapter_maps_the_features_and_leaves_the_logits() -> None:
    student = small().eval()
    adapted, x = Adapted(student, 2048).eval(), images()
    plain, out = student(x), adapted(x)
    assert torch.equal(out.logits, plain.logits)
    wanted = plain.features.double() @ adapted.adapter.weight.double().T + adapted.adapter.bias.double()
    torch.testing.assert_close(out.features.double(), wanted, atol=1e-5, rtol=1e-5)
    assert adapted.student is student
    assert (adapted.feature_dim, adapted.num_classes, adapted.stage_names) == (2048, 10, student.stage_names)
    assert adapted.stage_channels() == (16, 32, 64)
    assert adapted.head is student.head
    out.logits.sum().backward()
    assert adapted.adapter.weight.grad is None


@pytest.mark.parametrize("name", ["resnet8_v1", "resnet8", "torchvision:resnet18"])
def test_the_stem_is_what_enters_the_first_stage(name: str) -> None:
    """Beside the family's stages, and equal to the stem's own layers run by hand."""
    net = zoo.build(name, num_classes=5, image_px=64, stages=("stem", "layer1", "layer2")).eval()
    images = torch.rand(2, 3, 64, 64)
    x, bare = net.normalise(images), net.bare
    if name == "resnet8":
        stem = bare.conv1(x)
    else:
        stem = bare.bn1(bare.conv1(x)).relu()
        stem = bare.maxpool(stem) if hasattr(bare, "maxpool") else stem
    found = net(images).stages
    torch.testing.assert_close(found[0], stem)
    torch.testing.assert_close(found[1], bare.layer1(stem))
    assert net.stage_channels()[0] == stem.shape[1]


def test_fsp_with_the_stem_is_repdistillers_sum_of_three_matrices() -> None:
    """RepDistiller's FSP, written out: matrices of neighbours among [stem, layer1, layer2, layer3]."""
    stages = ("stem", "layer1", "layer2", "layer3")
    nets = [zoo.build(name, num_classes=5, stages=stages).eval() for name in ("resnet8_v1", "resnet14_v1")]
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        student, teacher = (net(images) for net in nets)

    def matrices(maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        found = []
        for bottom, top in zip(maps[:-1], maps[1:]):
            if bottom.shape[2] > top.shape[2]:
                bottom = torch.nn.functional.adaptive_avg_pool2d(bottom, tuple(top.shape[2:]))
            bottom, top = bottom.unsqueeze(1), top.unsqueeze(2)
            found.append((bottom * top).flatten(3).mean(-1))
        return found

    pairs = list(zip(matrices(student.stages), matrices(teacher.stages)))
    expected = sum((s - t).pow(2).mean() for s, t in pairs)
    assert len(pairs) == 3
    batch = Batch(images, labels=torch.zeros(4, dtype=torch.int64), target=teacher)
    played = Method.get_choice_class("fsp")(weight=1.0).student_play({}, batch, student)
    torch.testing.assert_close(played.terms["flow"], expected)
