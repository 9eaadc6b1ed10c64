"""What a recipe asks of a cluster, before it is run there: a cost model small enough to check by hand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastanc.models.counting import count
from fastanc.quoting import counted
from fastanc.training.assemble_networks import Sketch

_TRAINING_PASSES = 3  # forward, gradient of the input, gradient of the weights


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one recipe asks for."""

    batch: int
    """Images per step over all GPUs."""
    gradient_bytes: int
    """Of all players' moves in a step: what the processes average."""
    flop: float
    """Floating point operations of training the student on one image."""
    row_bytes: int
    """Read from the cache for one image."""
    image_bytes: int
    """Read for one image; 0 where nothing is decoded."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the machines offer; rates are sustained ones."""

    gpus: int
    gpus_per_node: int
    cores_per_node: int
    flop_per_s: float
    """Of one GPU."""
    decoded_per_s: float
    """Images that one core decodes in a second."""
    storage_bytes_per_s: float
    """Of one node."""
    network_bytes_per_s: float
    """Of one node, each way."""
    measured: frozenset[str] = frozenset()
    """Of compute, decode and storage: what was measured, in the place of being assumed."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.gpus % min(self.gpus, self.gpus_per_node):
            raise ValueError(
                f"--gpus {self.gpus} must be whole nodes of --gpus_per_node {self.gpus_per_node}"
            )

    @property
    def nodes(self) -> int:
        """Machines."""
        return max(1, self.gpus // self.gpus_per_node)

    @property
    def cores_per_gpu(self) -> float:
        """What every GPU's process can have."""
        return self.cores_per_node * self.nodes / self.gpus


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is moved and needed when the run goes as fast as its bound allows."""

    ceilings: dict[str, float]
    """Images per second over all GPUs that compute, decode, storage and network each allow."""
    node_bytes_per_step: float
    """That a node sends, and receives, to average the gradients: 2 (nodes - 1) / nodes of them (ring all-reduce)."""
    cache_bytes_per_s: float
    """Per node."""
    cores_per_gpu: float
    """That decoding keeps busy."""

    @property
    def bound(self) -> str:
        """The resource that allows least."""
        return min(self.ceilings, key=self.ceilings.__getitem__)

    @property
    def images_per_s(self) -> float:
        """Of the run."""
        return self.ceilings[self.bound]


def plan(load: Load, cluster: Cluster) -> Plan:
    """Return the plan of a load on a cluster; all four resources are taken to work at the same time."""
    nodes = cluster.nodes
    sent = 2 * (nodes - 1) / nodes * load.gradient_bytes
    read = load.row_bytes + load.image_bytes
    ceilings = {"compute": cluster.gpus * cluster.flop_per_s / load.flop}
    if load.image_bytes:
        ceilings["decode"] = nodes * cluster.cores_per_node * cluster.decoded_per_s
    if read:
        ceilings["storage"] = nodes * cluster.storage_bytes_per_s / read
    if sent:
        ceilings["network"] = load.batch * cluster.network_bytes_per_s / sent
    images_per_s = min(ceilings.values())
    return Plan(
        ceilings=ceilings,
        node_bytes_per_step=sent,
        cache_bytes_per_s=images_per_s * load.row_bytes / nodes,
        cores_per_gpu=images_per_s / cluster.gpus / cluster.decoded_per_s if load.image_bytes else 0.0,
    )


def load_of(sketch: Sketch, *, image_bytes: int) -> Load:
    """Return what a configuration's networks ask for, where so many bytes are read for a stored image."""
    moved = sum(_trained(sketch.players[play.player]) for play in sketch.method.plays)
    return Load(
        batch=sketch.batch,
        gradient_bytes=4 * moved,
        flop=2.0 * _TRAINING_PASSES * count(sketch.student).macs,
        row_bytes=sketch.row_bytes,
        image_bytes=image_bytes,
    )


def describe(load: Load, cluster: Cluster) -> str:
    """Return the plan in words, the bound last."""
    found = plan(load, cluster)
    lines = [
        f"{counted(cluster.gpus, 'GPU')} on {counted(cluster.nodes, 'node')}, batch {load.batch}"
        f" ({load.batch / cluster.gpus:g} a GPU)",
        f"gradients averaged per step: {load.gradient_bytes / 1e6:,.1f} MB; "
        f"a node sends {found.node_bytes_per_step / 1e6:,.1f} MB",
        f"cache per node: {found.cache_bytes_per_s / 1e6:,.1f} MB/s ({load.row_bytes:,} bytes an image)",
        f"decode: {found.cores_per_gpu:.1f} cores a GPU of {cluster.cores_per_gpu:.1f}",
        *(
            f"{name:8} allows {ceiling:12,.0f} images/s, {'measured' if name in cluster.measured else 'assumed'}"
            for name, ceiling in found.ceilings.items()
        ),
        f"bound by {found.bound}: {found.images_per_s:,.0f} images/s,"
        f" {1e3 * load.batch / found.images_per_s:,.1f} ms a step",
    ]
    return "\n".join(lines)


def _trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
