"""torch packages: a torch.export program (.pt2), on the CPU or on CUDA, compiled if the package asks for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from foretell.accel.torch import prepare
from foretell.core.errors import ModelFailed, PackageError
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensor, Tensors, TensorSpec, datatype_of
from foretell.runtimes.options import read_options
from foretell.runtimes.trust import refuse_untrusted
from foretell.store.package import Package


class TorchOptions(msgspec.Struct, frozen=True):
    """[options] of a torch package.

    compile: run through torch.compile (slow first batches of each new shape, faster ones after).
    inputs: names of the program's inputs in order; by default its own (which torch.export writes in lower case).
    outputs: names of the program's outputs in order; by default those of the signature, or the keys of the dict
    that the program returns.
    """

    compile: bool = False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class TorchPredictor:
    """Calls the program's module with tensors that share memory with the inputs (CPU) or copies (CUDA)."""

    def __init__(
        self, module: Callable[..., Any], signature: Signature, keywords: Sequence[str], device: torch.device
    ) -> None:
        self._module: Callable[..., Any] | None = module
        self._signature = signature
        self._keywords = keywords
        self._positional = len(signature.inputs) - len(keywords)
        self._device = device
        self.device = device.type

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        assert self._module is not None, "closed"
        tensors = [self._tensor(inputs[s.name]) for s in self._signature.inputs]
        by_keyword = dict(zip(self._keywords, tensors[self._positional :], strict=True))
        with torch.inference_mode():
            result = self._module(*tensors[: self._positional], **by_keyword)
        names = [s.name for s in self._signature.outputs]
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, flatten(result, names), strict=True)}

    def close(self) -> None:
        self._module = None

    def _tensor(self, array: Tensor) -> torch.Tensor:
        # Inputs may be views of a receive buffer that must not be written to; torch only warns about that.
        array = array if array.flags.writeable else array.copy()
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def flatten(result: Any, names: Sequence[str]) -> list[torch.Tensor]:
    """The tensors of a program's result in the order of `names`. Raises `ModelFailed` if they don't fit."""
    if isinstance(result, torch.Tensor):
        result = [result]
    if isinstance(result, Mapping):
        result = [result[name] for name in names if name in result]
    if not isinstance(result, (list, tuple)) or len(result) != len(names):
        raise ModelFailed(f"the program returned {type(result).__name__}, not the outputs {', '.join(names)}")
    return list(result)


def read_program(program: Any, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> tuple[Signature, list[str]]:
    """The signature of an exported program, and the keywords by which it takes its last inputs.

    `inputs` and `outputs` rename in order; without them inputs have the program's names, outputs the keys of the
    dict that it returns, or the names of its graph. Symbolic axes are -1. Raises `PackageError`.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    taken, made = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    returns = program.call_spec.out_spec
    own = returns.context if returns is not None and returns.type is dict else outputs or made
    specs = (_rename("inputs", values, taken, inputs or taken), _rename("outputs", values, made, own))
    keywords = program.call_spec.in_spec.children()[1].context or []
    return Signature(*specs), [str(name) for name in keywords]


def _rename(kind: str, values: Mapping[str, Any], own: Sequence[str], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    if len(names) != len(own):
        raise PackageError(
            f"the program has {len(own)} {kind}, model.toml names {len(names)} ({', '.join(names)}); name them all"
            f" in options.{kind}"
        )
    return tuple(_spec(name, values[value]) for name, value in zip(names, own, strict=True))


def _spec(name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise PackageError(f'"{name}" of the program is a {type(value).__name__}, not a tensor; re-export it')
    try:
        dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
    except TypeError:
        raise PackageError(f'"{name}" has dtype {value.dtype}, which no protocol can carry; re-export it') from None
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return TensorSpec(name, datatype_of(np.empty(0, dtype)), shape)


def open_predictor(package: Package, settings: ReplicaSettings, trust_code: bool) -> TorchPredictor:
    """Load the program. Raises `UntrustedCode` without `trust_code`: torch.export.load unpickles parts of it."""
    options = read_options(package.manifest, TorchOptions)
    if not trust_code:
        refuse_untrusted(package, f"{package.artifact.name} is a torch.export file, parts of which torch unpickles")
    device = prepare(settings.device, settings.threads)
    try:
        program = torch.export.load(package.artifact)
    except Exception as error:
        raise PackageError(
            f"{package.artifact.name} is not a program that torch {torch.__version__} can load:"
            f" {type(error).__name__}: {str(error)[:300]}"
        ) from None
    declared = tuple(s.name for s in package.manifest.signature.outputs)
    signature, keywords = read_program(program, options.inputs, options.outputs or declared)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module()
    if options.compile:
        module = torch.compile(module, dynamic=True)
    return TorchPredictor(module, signature, keywords, device)
