"""The probe: the head is the layer whose output are the logits, whatever the weights; nothing is disturbed by it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch._dynamo
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.cache.rows import head_logits
from fastanc.models.probe import can_read, checked
from fastanc.models.taps import Adapted, Tapped
from fastanc.models.weights import head_digest

K, PX = 5, 8


class Body(nn.Module):
    """Two stages; what becomes of the second one's map is up to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))


class Plain(Body):
    """One head, and one for training alone that comes later in module order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, K)
        self.aux = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


class Hidden(Plain):
    """A layer before the head that is as wide as the logits."""

    def forward(self, x: Tensor) -> Tensor:
        x = Body.forward(self, x).mean((2, 3))
        return self.fc(F.pad(self.aux(x).relu(), (0, 1)))


class PerPosition(Plain):
    """The head reads [B, H, W, D], and its outputs are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(Body.forward(self, x).permute(0, 2, 3, 1)).mean((1, 2))


class PerToken(Plain):
    """The head reads [B, 1, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(Body.forward(self, x).mean((2, 3))[:, None]).flatten(1)


class Averaged(Plain):
    """The mean of two heads, as of a distilled DeiT."""

    def forward(self, x: Tensor) -> Tensor:
        x = Body.forward(self, x)
        return (self.fc(x.mean((2, 3))) + self.aux(x.amax((2, 3)))) / 2


class Twice(Plain):
    """One head on two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        x = Body.forward(self, x)
        first = self.fc(x.mean((2, 3)))
        self.fc(x.amax((2, 3)))
        return first


class Scaled(Plain):
    """Logits that are divided by a temperature."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Unlinear(nn.Linear):
    """A layer that is called linear and is not."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


class Cosine(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Unlinear(6, K)


class Convolved(Body):
    """A 1 x 1 convolution for a head, on pooled maps or under the pooling."""

    def __init__(self, pooled: bool, relu: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.head = nn.Conv2d(6, K, 1)
        self.end = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.pooled:
            return self.end(self.head(x.mean((2, 3), keepdim=True))).flatten(1)
        return self.end(self.head(x)).mean((2, 3))


def tapped(bare: nn.Module, **options: object) -> Tapped:
    kwargs = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "num_classes": K,
        "image_px": PX,
        "name": "net",
        **options,
    }
    return Tapped(bare, **kwargs)  # type: ignore[arg-type]


HEADS = [
    (Plain, "fc"),
    (Hidden, "fc"),
    (PerPosition, "fc"),
    (PerToken, "fc"),
    (lambda: Convolved(pooled=True), "head"),
    (lambda: Convolved(pooled=False), "head"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "name"), HEADS)
def test_the_head_is_found_and_maps_the_features_to_the_logits(
    make: type[Body], name: str, dtype: torch.dtype
) -> None:
    network = checked(tapped(make()).to(dtype)).eval()
    assert (network.head_name, network.feature_dim, network.no_head) == (name, 6, "")
    assert isinstance(network.head, nn.Linear)
    assert (network.head.in_features, network.head.out_features) == (6, K)
    x = torch.rand(3, 3, PX, PX, dtype=dtype)
    out = network(x)
    torch.testing.assert_close(head_logits(out.features, network.head), out.logits.float())
    torch.testing.assert_close(network.head(out.features), out.logits)
    assert checked(tapped(make(), head=name)).head_name == name


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Averaged, r"more than one linear layer's output \(fc and aux are 5 wide\)"),
        (Scaled, r"\(fc is 5 wide\)"),
        (Twice, r"\(fc is 5 wide\)"),
        (Cosine, r"\(fc is 5 wide\)"),
        (lambda: Convolved(pooled=False, relu=True), r"\(head is 5 wide\)"),
        (lambda: nn.Sequential(Body(), nn.Conv2d(6, K, 4), nn.Flatten()), "no linear layer of 5 outputs"),
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_logits_that_are_no_linear_map_of_features_are_all_there_is(
    make: type[Body], why: str, zero: bool
) -> None:
    bare = make()
    for name, parameter in bare.named_parameters():
        if zero and parameter.shape[0] == K and not name.startswith("1."):
            nn.init.zeros_(parameter)  # as timm makes the heads of many
    if zero and isinstance(bare, Cosine):
        return  # a map to zero, however it is made, is linear
    network = checked(tapped(bare)).eval()
    assert (network.head, network.feature_dim, network.head_name) == (None, None, None)
    assert torch.compile(network, backend="eager")(torch.rand(2, 3, PX, PX)).features is None
    with pytest.raises(ValueError, match=f"net has no linear head, so no features to adapt: .*{why}"):
        Adapted(network, 3)
    assert head_digest(network) is None


def test_a_named_head_that_does_not_give_the_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head 'aux' of net does not give its logits.*: name fc, or none"):
        checked(tapped(Plain(), head="aux"))
    with pytest.raises(
        ValueError, match=r"head 'fc' of net .*: name none, since .*\(fc and aux are 5 wide\)"
    ):
        checked(tapped(Averaged(), head="fc"))
    with pytest.raises(ValueError, match=r"head 'layer1.0' of net is no nn.Linear and no 1 x 1 conv"):
        tapped(Plain(), head="layer1.0")


class Odd(Plain):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.answer


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (torch.zeros(2, 3), r"\[2, 3\]"),
        (torch.zeros(2, K, 4), r"\[2, 5, 4\]"),
        ([{"a": 1}], "a dict"),
    ],
)
def test_no_logits_are_one_sentence(answer: object, given: str) -> None:
    with pytest.raises(
        ValueError, match=rf"net gives {given} for two images and no logits \[2, 5\]"
    ) as caught:
        checked(tapped(Odd(answer)))
    assert "\n" not in str(caught.value)


def test_images_that_a_network_cannot_read_are_one_sentence() -> None:
    network = tapped(torchvision.models.alexnet(num_classes=K), image_px=16)
    with pytest.raises(ValueError, match=r"net cannot read images of 16 x 16 with 3 channels \(") as caught:
        checked(network, usual_px=224)
    assert str(caught.value).endswith(
        "set data.image_px to a size that it takes, e.g. 224, or take another network"
    )
    assert "\n" not in str(caught.value)
    assert not can_read(network.bare, 3, 16)
    assert can_read(network.bare, 3, 64)


def test_a_check_disturbs_nothing() -> None:
    network = tapped(Plain(), stages="auto")
    network.bare.layer1.eval()
    network.bare.layer2[0].weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in network.modules()]
    assert checked(network) is network
    assert can_read(network.bare, 3, PX)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert [len(module._forward_hooks) for module in network.modules()] == hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert all(p.grad is None for p in network.parameters())
    heads = [m for m in network.modules() if m._forward_pre_hooks]
    assert heads == [network.head]  # the guess that was wrong is not tapped any more
    network(torch.rand(2, 3, PX, PX)).logits.sum().backward()


def test_an_exception_leaves_no_trace_either() -> None:
    network = tapped(Plain(), image_px=PX)
    network.in_channels = 4
    with pytest.raises(ValueError, match="with 4 channels"):
        checked(network)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.bare.modules())


def test_without_values_the_last_layer_that_fits_is_the_head() -> None:
    with torch.device("meta"):
        network = checked(tapped(Plain(), stages="auto"))
        assert checked(tapped(Plain(), head="aux")).head_name == "aux"
    assert (network.head_name, network.feature_dim) == ("fc", 6)
    assert network.head.weight.is_meta


def test_a_checked_network_is_copied_compiled_and_exported() -> None:
    network = checked(tapped(Convolved(pooled=True), stages="auto")).eval()
    x = torch.rand(2, 3, PX, PX)
    wanted = network(x)
    assert torch._dynamo.explain(network)(x).graph_break_count == 0
    exported = torch.export.export(network, (x,)).module()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), exported):
        got = twin(x)
        assert torch.equal(got.features, wanted.features)
        assert torch.equal(got.stages[1], wanted.stages[1])
    twin = copy.deepcopy(network)
    twin.tap_head(None)
    assert twin(x).features is None
    assert torch.equal(network(x).features, wanted.features)


def test_the_head_of_a_convolution_shares_its_memory() -> None:
    network = checked(tapped(Convolved(pooled=True))).to(memory_format=torch.channels_last)
    network.requires_grad_(False)
    head, state = network.head, torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    assert not head.weight.requires_grad
    assert head.weight.data_ptr() == network.bare.head.weight.data_ptr()
    before = head_digest(network)
    network.bare.head.bias += 1
    assert torch.equal(head.bias, network.bare.head.bias)
    assert head_digest(network) != before


class Tokens(Body):
    """Whatever a stage gives; the rest of the network does not mind."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage, self.fc, self.idle = stage, nn.Linear(6, K), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.stage(x)
        return self.fc(x.mean((2, 3)))


class Shaped(nn.Module):
    def __init__(self, how: object) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> object:
        return self.how(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), r"gives token sequences \[B, T, D\], here \[2, 16, 6\]"),
        (lambda x: x.permute(0, 2, 3, 1), r"gives \[2, 4, 4, 6\], where the channels seem to come last"),
        (lambda x: (x, x), "gives a tuple"),
        (lambda x: x.mean((2, 3)), r"gives \[2, 6\]"),
    ],
)
def test_a_stage_that_is_no_map_is_one_sentence(how: object, reason: str) -> None:
    with pytest.raises(
        ValueError, match=rf"stage 'stage' of net {reason}, and no map \[B, C, H, W\]"
    ) as caught:
        checked(tapped(Tokens(Shaped(how)), stages=("layer1", "stage")))
    assert "take a method that reads none, e.g. kd or anc" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_that_is_not_run_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="stage 'idle' of net is not run in a pass"):
        checked(tapped(Tokens(nn.Identity()), stages=("idle",)))


def test_maps_with_channels_last_are_turned_where_the_family_says_so() -> None:
    bare = Tokens(Shaped(lambda x: x.permute(0, 2, 3, 1)))
    bare.output_fmt = "NHWC"
    network = checked(tapped(bare, stages=("layer2", "stage"))).eval()
    plain, turned = network(torch.rand(2, 3, PX, PX)).stages
    assert torch.equal(plain, turned)
    assert network.stage_channels() == (6, 6)
