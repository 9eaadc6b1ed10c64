"""Passes of one size: another one is compiled anew, and cuDNN looks for its kernels again."""

from __future__ import annotations

from torch import Tensor, nn

from fastanc.batch import Outputs, cut


def one_size(network: nn.Module) -> bool:
    """Return whether batches of another size cost a network more than images do that nobody asked for."""
    return network._compiled_call_impl is not None or any(weight.is_cuda for weight in network.parameters())


def passed(network: nn.Module, images: Tensor, size: int) -> Outputs:
    """Return a network's outputs on images [b, ...], passed with copies of the first as `size` where b is smaller.

    It must be in eval mode, in which an image's outputs do not depend on its neighbours.
    """
    out: Outputs = network(images if len(images) >= size else _filled(images, size))
    return out if len(images) >= size else cut(out, slice(len(images)))


def _filled(images: Tensor, size: int) -> Tensor:
    # Strides of a batch do not depend on its size; copied they stay those that were compiled, with one channel too.
    filled = images.new_empty_strided((size, *images.shape[1:]), images.stride())
    filled[: len(images)] = images
    filled[len(images) :] = images[:1]
    return filled
