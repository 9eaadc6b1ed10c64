"""A student as a program that runs without its code: torch.export and ONNX, each read back and checked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastanc.jobs.classifier import Classifier, Unchecked, brief

Run = Callable[[Tensor], Tensor]


class Halved(nn.Module):
    """A classifier whose layers compute in fp16; images, normalisation and logits are fp32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.half_classifier = copy.deepcopy(classifier)
        self.half_classifier.bare.half()
        self.gives = classifier.gives

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits or features of images [B, C, H, W] float 0..1."""
        own = self.half_classifier
        output = own.answer(torch.addcmul(own.shift, images, own.scale).half())
        return output.float()


def write_program(classifier: Classifier | Halved, example: Tensor, path: Path) -> None:
    """Write student.pt2 or an ONNX file, by the suffix, for any number of images of the example's size."""
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(classifier, (example,), dynamic_shapes=batch)
    _forget_places(program)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program,
        f=str(path),
        input_names=["images"],
        output_names=[classifier.gives],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _forget_places(program: torch.export.ExportedProgram) -> None:
    """Take off of which file's line every operation is: paths of this machine, which would go with it to a hub."""
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)


def need_onnx() -> None:
    """Raise ValueError where ONNX cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX export needs {error.name}: pip install onnx onnxscript") from error


def read_program(path: Path, classifier: Classifier) -> Run:
    """Return what student.pt2 computes."""
    run: Run = torch.export.load(path).module()
    return run


def read_onnx(path: Path, classifier: Classifier) -> Run:
    """Return what an ONNX file computes, [1 or 2, B, K]: by onnxruntime where it is installed, by ONNX's reference.

    Raises RuntimeError where the file is not valid; Unchecked where it can be run by neither.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"{path.name} is no valid ONNX program: {error}") from error
    except Exception as error:
        raise Unchecked(f"onnx.checker cannot read it ({brief(error)})") from error
    fast = _by_onnxruntime(path)

    def run(images: Tensor) -> Tensor:
        found = [] if fast is None else [fast(images)]
        try:
            found.append(_by_reference(path, classifier, images))
        except Exception as error:  # an operator that it lacks, or its memory: nothing about the file
            if not found:
                raise Unchecked(f"onnx.reference cannot run it ({brief(error)})") from error
        return torch.stack(found)

    return run


def _by_reference(path: Path, classifier: Classifier, images: Tensor) -> Tensor:
    from onnx.reference import ReferenceEvaluator

    logits, *_ = ReferenceEvaluator(str(path)).run([classifier.gives], {"images": images.numpy()})
    return torch.from_numpy(logits)


def _by_onnxruntime(path: Path) -> Run | None:
    try:
        return run_by_onnxruntime(path)
    except ValueError:
        return None


def run_by_onnxruntime(path: Path) -> Run:
    """Return what onnxruntime computes of an ONNX file on the CPU; ValueError where it is not installed."""
    session = _session(path)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def need_onnxruntime(what: str) -> None:
    """Raise ValueError, which names what needs it, where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{what} needs onnxruntime: pip install 'fastanc[export]'") from error


def _session(path: Path) -> Any:
    need_onnxruntime(f"running {path.name}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
