"""The papers' networks: sizes beside the printed ones, and behaviour beside a calculation by hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models.attention import AttentionEstimators
from fastanc.models.counting import count
from fastanc.models.discriminators import TABLE1, can_discriminator, discriminator, ksanc_discriminator
from fastanc.models.folding import fold_batchnorm
from fastanc.models.generators import dafl_generator, dfad_generator
from fastanc.models.taps import Adapted, Tapped
from fastanc.models.zoo import build

# name, classes, channels, px, head counted, parameters in M, 2 * batch * MACs in B, batch, features.
# Printed in the ANC paper (first six), CAN (Wide ResNets, on CIFAR-100) and DAFL, or computed for the paper's
# families where it prints none or, for "R50", the sum of two networks; None where there is no number.
PAPER = [
    ("resnet20", 10, 3, 32, True, "0.27", 10.52, 128, 64),
    ("resnet164", 10, 3, 32, True, "2.6", 97.49, 128, 64),
    ("nin", 10, 1, 28, True, "10.6", 60.23, 128, 1024),
    ("lenet4", 10, 1, 28, True, "2.3", 7.06, 128, 1024),
    ("imagenet_resnet18", 1000, 3, 224, False, "13.95", 883.73, 256, 2048),
    ("imagenet_resnet152", 1000, 3, 224, False, "58.2", 5587.0, 256, 2048),
    ("wrn-40-10", 100, 3, 32, True, "55.9", None, 128, 640),
    ("wrn-10-4", 100, 3, 32, True, "1.22", None, 128, 256),
    ("resnet164_bottleneck", 10, 3, 32, True, "1.7", None, 128, 256),
    ("imagenet_resnet50", 1000, 3, 224, False, "23.52", 1782.0, 256, 2048),
    ("lenet5", 10, 1, 32, True, "0.06", None, 128, 84),
    ("resnet34_8x", 10, 3, 32, True, "21.28", None, 128, 512),
]


@pytest.mark.parametrize(
    ("name", "classes", "channels", "px", "with_head", "parameters", "flops", "batch", "features"), PAPER
)
def test_sizes_are_the_papers(
    name: str,
    classes: int,
    channels: int,
    px: int,
    with_head: bool,
    parameters: str,
    flops: float | None,
    batch: int,
    features: int,
) -> None:
    with torch.device("meta"):
        network = build(name, num_classes=classes, in_channels=channels, image_px=px)
    counted = count(network, with_head=with_head)
    digits = len(parameters.split(".")[1])
    assert f"{counted.parameters / 1e6:.{digits}f}" == parameters
    assert network.feature_dim == features
    if flops is not None:
        assert 2 * batch * counted.macs / 1e9 == pytest.approx(flops, rel=0.007)


def test_the_cifar_resnets_match_to_the_last_printed_digit() -> None:
    for name, printed in (("resnet20", "10.52"), ("resnet164", "97.49")):
        assert f"{2 * 128 * count(build(name, num_classes=10)).macs / 1e9:.2f}" == printed


def test_count_agrees_with_a_hand_count_and_leaves_the_adapter_out() -> None:
    network = Tapped(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 5)), mean=[0], std=[1]
    )
    wanted = (4 * 9 + 4 + 144 * 5 + 5, 36 * 4 * 9 + 144 * 5)
    assert count(network, image_px=6, in_channels=1) == wanted
    assert count(Adapted(network, 99), image_px=6, in_channels=1) == wanted
    assert count(network, image_px=6, in_channels=1, with_head=False) == (40, 36 * 36)


def test_wide_resnet_drops_only_while_training() -> None:
    network = build("wrn-10-1-drop0.3", num_classes=4)
    x = torch.rand(2, 3, 8, 8)
    network(x)
    assert not torch.equal(network(x).logits, network(x).logits)
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)


@pytest.mark.parametrize("name", ["nin", "lenet4", "lenet5", "lenet5_half"])
@pytest.mark.parametrize("px", [28, 32])
def test_small_networks_read_both_sizes(name: str, px: int) -> None:
    network = build(name, num_classes=10, in_channels=1, image_px=px, stages="auto")
    out = network(torch.rand(2, 1, px, px))
    assert out.logits.shape == (2, 10)
    assert network.stage_channels() == tuple(stage.shape[1] for stage in out.stages)


def test_discriminator_parameters_by_hand() -> None:
    wanted = {
        "128-256-128": 64 * 128 + 128 + 128 * 256 + 256 + 256 * 128 + 128 + 128 + 1,
        "64-64": 64 * 64 + 64 + 64 * 64 + 64 + 64 + 1,
        "500-500": 64 * 500 + 500 + 500 * 500 + 500 + 500 + 1,
        "128conv-256conv": 3 * 128 + 128 + 3 * 128 * 256 + 256 + 256 * 16 + 1,
    }
    for layout, parameters in wanted.items():
        assert sum(p.numel() for p in discriminator(layout, 64).parameters()) == parameters


@pytest.mark.parametrize("layout", TABLE1)
def test_discriminator_gives_unbounded_logits(layout: str) -> None:
    net = discriminator(layout, 65, 3)
    out = net(1e4 * torch.randn(64, 65))
    assert out.shape == (64, 3)
    assert out.min() < -1
    assert out.max() > 1
    assert sum(isinstance(layer, nn.ReLU) for layer in net) == layout.count("-") + 1
    assert not isinstance(net[-1], nn.ReLU)


@pytest.mark.parametrize("layout", ["", "128-", "128-x", "128-64conv", "0-3", "conv"])
def test_a_layout_that_cannot_be_read_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match=f"discriminator layout '{layout}'"):
        discriminator(layout, 64)


def test_can_discriminator_equals_its_formula() -> None:
    net = can_discriminator(6, depth=2).double().eval()
    state = net.state_dict()
    x = torch.randn(5, 6, dtype=torch.float64)
    inverse = (1 + 1e-5) ** -0.5  # fresh running statistics: mean 0, variance 1
    y = x * inverse
    for block in (1, 2):
        weight, bias = state[f"{block}.linear.weight"], state[f"{block}.linear.bias"]
        y = y + (y * inverse).clamp(min=0) @ weight.T + bias
    y = y @ state["3.weight"].T + state["3.bias"]
    torch.testing.assert_close(net(x), y, atol=1e-12, rtol=1e-12)
    assert net(x).shape == (5, 8)
    assert can_discriminator(10, width=128)(torch.randn(4, 10)).shape == (4, 12)


def test_ksanc_discriminator_has_the_papers_order() -> None:
    net = ksanc_discriminator(100, 101)
    kinds = [type(layer).__name__.removesuffix("1d") for layer in net]
    assert kinds == ["BatchNorm", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear"]
    assert net(torch.randn(4, 100)).shape == (4, 101)


@pytest.mark.parametrize("attend_on", ["raw", "sum"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_attention_equals_its_formula(attend_on: str, pooling: str) -> None:
    net = AttentionEstimators(7, (4, 6), (8, 5), global_dim=3, attend_on=attend_on, pooling=pooling).double()
    stages = (torch.randn(2, 4, 4, 4).double(), torch.randn(2, 6, 3, 2).double())
    features = torch.randn(2, 7).double()
    got = net(Outputs(torch.zeros(2, 1), features, stages))
    state = net.state_dict()
    g = features @ state["describe.weight"].flatten(1).T + state["describe.bias"]
    wanted = torch.zeros(2, 13).double()
    for i, (stage, start, width) in enumerate(((stages[0], 0, 8), (stages[1], 8, 5))):
        estimator = f"estimators.{i}."
        lift = g @ state[estimator + "lift.weight"].flatten(1).T + state[estimator + "lift.bias"]
        for b in range(2):
            raw = state[f"transforms.{i}.weight"].flatten(1) @ stage[b].flatten(1)
            raw = raw + state[f"transforms.{i}.bias"][:, None]
            lifted = raw + lift[b][:, None]
            score = (state[estimator + "score.weight"].flatten() @ lifted).exp()
            values = raw if attend_on == "raw" else lifted
            pixels = 1 if pooling == "sum" else raw.shape[1]
            wanted[b, start : start + width] = (values * score / score.sum()).sum(1) / pixels
    torch.testing.assert_close(got, wanted)
    assert net.descriptor_dim == 13


def test_teacher_side_attention_has_no_channel_transform() -> None:
    net = AttentionEstimators(8, (4, 6))
    assert not any(key.startswith("transforms") for key in net.state_dict())
    with pytest.raises(ValueError, match="2 stage maps and the teacher 3"):
        AttentionEstimators(8, (4, 6), (4, 6, 8))
    with pytest.raises(ValueError, match="pooling 'max' is unknown"):
        AttentionEstimators(8, (4, 6), pooling="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [dafl_generator, dfad_generator])
@pytest.mark.parametrize(("px", "channels"), [(28, 1), (32, 3)])
def test_generated_images_reach_a_network_standardised(make: object, px: int, channels: int) -> None:
    mean, std = (0.3, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    net = make(100, channels, px, mean=mean, std=std)  # type: ignore[operator]
    images = net(torch.randn(64, 100))
    assert images.shape == (64, channels, px, px)
    reader = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(channels * px * px, 2)), mean=mean, std=std)
    seen = reader.normalise(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean(1), torch.zeros(channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.var(1), torch.ones(channels), atol=1e-2, rtol=0)
    assert images.clamp(0, 1).sub(images).abs().mean() < 0.2  # most pixels lie in 0..1
    images.sum().backward()
    assert net.project.weight.grad is not None


def test_dafl_generator_keeps_the_published_eps() -> None:
    kwargs = {"mean": (0.5,), "std": (0.5,)}
    eps = [m.eps for m in dafl_generator(10, 1, 28, **kwargs).modules() if isinstance(m, nn.BatchNorm2d)]
    assert eps == [1e-5, 0.8, 0.8, 1e-5]
    with pytest.raises(ValueError, match="multiple of 4"):
        dafl_generator(10, 1, 30, **kwargs)


def test_a_narrow_generator_costs_the_square_less() -> None:
    kwargs = {"mean": (0.5,), "std": (0.5,)}
    published, narrow = (dafl_generator(10, 1, 28, **kwargs, width=width) for width in (64, 16))
    assert published.conv2.weight.shape == (64, 128, 3, 3)
    assert narrow.conv2.weight.shape == (16, 32, 3, 3)
    assert narrow(torch.randn(2, 10)).shape == (2, 1, 28, 28)


def _randomise_batchnorm(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "left"),
    [("torchvision:resnet18", 0), ("torchvision:resnet50", 0), ("resnet20_v1", 0), ("resnet20", 10)],
)
def test_folding_changes_no_output(name: str, left: int) -> None:
    network = build(name, num_classes=10, stages="auto").double().eval()
    _randomise_batchnorm(network)
    folded = fold_batchnorm(network)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = network(x), folded(x)
    for a, b in zip(
        (got.logits, got.features, *got.stages), (wanted.logits, wanted.features, *wanted.stages)
    ):
        assert (a - b).abs().max() < 1e-12 * b.abs().max()


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))

    with pytest.raises(ValueError, match="BatchNorm of Branching cannot be folded"):
        fold_batchnorm(Tapped(Branching(), mean=[0.5] * 3, std=[0.5] * 3))


def _cifar10_test(root: Path, n: int) -> tuple[Tensor, Tensor]:
    with (root / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        content = pickle.load(file, encoding="bytes")
    pixels = torch.from_numpy(content[b"data"][:n]).view(-1, 3, 32, 32)
    return pixels, torch.tensor(content[b"labels"][:n])


def _right(network: Tapped, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        logits = torch.cat([network(part).logits for part in images.split(250)])
    return int((logits.argmax(1) == labels).sum())


def test_published_resnet20_is_right_on_real_images(data_root: Path) -> None:
    path = next((data_root / "weights").glob("resnet20-*.th"))
    network = build("resnet20_v1", num_classes=10, weights=path).eval()
    images, labels = _cifar10_test(data_root, 500)
    assert abs(_right(network, images, labels) - 455) <= 1  # one tie may fall otherwise on another CPU


@pytest.mark.slow
def test_folding_the_published_resnet56_keeps_its_logits(data_root: Path) -> None:
    path = next((data_root / "weights").glob("resnet56-*.th"))
    network = build("resnet56_v1", num_classes=10, weights=path).eval()
    images, _ = _cifar10_test(data_root, 100)
    folded = fold_batchnorm(network)
    with torch.no_grad():
        wanted, got = network(images).logits, folded(images).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain, rounded = network(images).logits.float(), folded(images).logits.float()
    assert (got - wanted).abs().max() < 2e-4
    assert not torch.equal(got, wanted)
    # in bf16 both round, by a hundredth of logits up to 28; folding adds nothing to that
    errors = [(logits - wanted).abs().max() for logits in (plain, rounded)]
    print(
        f"fp32 {(got - wanted).abs().max():.1e}; bf16 against fp32: {errors[0]:.2f}, folded {errors[1]:.2f}"
    )
    assert errors[1] < min(0.5, 1.5 * errors[0])


@pytest.mark.slow
def test_published_resnet56_has_its_published_accuracy(data_root: Path) -> None:
    path = next((data_root / "weights").glob("resnet56-*.th"))
    network = build("resnet56_v1", num_classes=10, weights=path).eval()
    images, labels = _cifar10_test(data_root, 10_000)
    assert abs(_right(network, images, labels) - 9339) <= 1  # one tie may fall otherwise on another CPU


@pytest.mark.gpu
def test_a_network_runs_on_the_gpu_in_bf16() -> None:
    network = build("resnet20", num_classes=10, stages="auto").cuda().eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, device="cuda")
    images = images.to(memory_format=torch.channels_last)
    wanted = network(images).logits
    with torch.autocast("cuda", torch.bfloat16):
        out = network(images)
    assert F.cosine_similarity(out.logits.float(), wanted).min() > 0.98
