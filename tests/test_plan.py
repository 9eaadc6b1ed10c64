"""The cost model against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastanc.jobs.plan import Cluster, Load, describe, load_of, plan
from fastanc.models import zoo
from fastanc.parsing import parse

LOAD = Load(batch=1600, gradient_bytes=40_000_000, flop=1e10, row_bytes=4000, image_bytes=96_000)
CLUSTER = Cluster(
    gpus=16,
    gpus_per_node=8,
    cores_per_node=64,
    flop_per_s=1e14,
    decoded_per_s=1000,
    storage_bytes_per_s=1e10,
    network_bytes_per_s=1e9,
)


def test_two_nodes_by_hand() -> None:
    found = plan(LOAD, CLUSTER)
    assert found.node_bytes_per_step == 40_000_000  # 2 (2 - 1) / 2 of the gradients
    assert found.ceilings == {
        "compute": 160_000,  # 16 GPUs x 1e14 / 1e10
        "decode": 128_000,  # 2 nodes x 64 cores x 1000
        "storage": 200_000,  # 2 nodes x 1e10 / 100,000 bytes
        "network": 40_000,  # 1600 images in 0.04 s
    }
    assert (found.bound, found.images_per_s) == ("network", 40_000)
    assert found.cache_bytes_per_s == 80_000_000  # 20,000 images a node x 4000
    assert found.cores_per_gpu == 2.5


def test_every_resource_can_be_the_bound() -> None:
    fast = replace(CLUSTER, network_bytes_per_s=1e12)
    assert plan(LOAD, fast).bound == "decode"
    assert plan(LOAD, replace(fast, cores_per_node=1000)).bound == "compute"
    assert plan(LOAD, replace(fast, storage_bytes_per_s=1e9)).bound == "storage"
    alone = plan(LOAD, replace(CLUSTER, gpus=8))
    assert "network" not in alone.ceilings
    assert alone.node_bytes_per_step == 0
    assert "decode" not in plan(replace(LOAD, image_bytes=0), CLUSTER).ceilings


def test_half_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpus 12"):
        replace(CLUSTER, gpus=12)


def test_load_of_a_recipe() -> None:
    config = parse(["--recipe", "digits_anc"])
    load = load_of(config, classes=10, channels=3, image_bytes=900)
    network = zoo.build("resnet8", num_classes=10, in_channels=3, image_px=32)
    student = sum(p.numel() for p in network.parameters())
    # 64 features: 64-128-256-128-1 with biases
    critic = 64 * 128 + 128 + 128 * 256 + 256 + 256 * 128 + 128 + 128 + 1
    assert load.gradient_bytes == 4 * (student + critic)
    assert load.row_bytes == 64 * 2
    assert "bound by" in describe(load, CLUSTER)
