"""A random teacher's outputs have the size of a trained one's, and every machine gets the same teacher."""

import pytest
import torch

from fastanc.models import zoo
from fastanc.models.calibration import calibrate_batchnorm

IMAGES = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random_network(name: str) -> zoo.Tapped:
    torch.manual_seed(0)
    return zoo.build(name, num_classes=10)


@pytest.mark.parametrize(
    "name", ["resnet110", "wrn-40-10", "torchvision:resnet152", "torchvision:mobilenet_v2"]
)
def test_a_deep_random_network_gives_features_of_order_one(name: str) -> None:
    network = random_network(name)
    with torch.no_grad():
        before = network.eval()(IMAGES).features.abs().max()
        calibrate_batchnorm(network, 3, 32)
        after = network(IMAGES).features
    assert not 0.01 < before < 50, "the test needs a network that explodes or vanishes by itself"
    assert after.abs().max() < 30
    assert 0.1 < after.std() < 3


def test_the_result_does_not_depend_on_thread_count_or_global_generator() -> None:
    digests = set()
    for threads in (1, 2, 1):
        network = random_network("resnet56")
        torch.manual_seed(threads)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        calibrate_batchnorm(network, 3, 32)
        torch.set_num_threads(before)
        digests.add(zoo.weights_digest(network))
    assert len(digests) == 1


def test_every_scale_is_the_inputs_mean_square_to_a_factor_of_root_two() -> None:
    network = random_network("resnet8")
    calibrate_batchnorm(network, 3, 32)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    seen: dict[torch.nn.Module, float] = {}
    for layer in layers:
        layer.register_forward_pre_hook(lambda m, inputs: seen.update({m: inputs[0].square().mean().item()}))
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        network(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=noise))
    assert len(seen) == len(layers)
    for layer, square in seen.items():
        assert layer.running_var is not None
        assert 0.7 < square / layer.running_var[0].item() < 1.42
