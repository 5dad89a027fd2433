"""A second device for machines that have none: its tensors say they are elsewhere and are computed by the CPU.

What a GPU would refuse is refused: operands on two devices, a generator of the other one. What would hold the
host up until a GPU is done with everything it was given is counted. Importing this module changes PyTorch for
the whole process (it registers a device), so only scripts of their own do.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import sam_bench.seeds

NAME = "elsewhere"
aten = torch.ops.aten

waits: Counter[str] = Counter()
"""How often the host had to wait for the device, by what it did and where."""

_HAND_OVER = {aten.copy_, aten._to_copy}
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_READ_BACK = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim}
_claimed: dict[int, str] = {}  # a generator to the device that it was made for


class _Generator(torch.Generator):
    """PyTorch makes generators for devices written in C++ only: one of the CPU that remembers what was asked."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        _claimed[made._cdata] = torch.device(device).type
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None: ...


class _RowGenerator(_Generator):
    """`sam_bench.seeds.RowGenerator`, likewise."""

    first: int
    total: int


class Elsewhere(Tensor):
    """A tensor of the device, around the one that holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Elsewhere:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held})"

    def tolist(self) -> Any:
        _wait("tolist")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {NAME} to numpy; use Tensor.cpu() first")


class Device(TorchDispatchMode):
    """While it is on, there is a device called `NAME`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_here(kwargs.get("device")) or any(issubclass(kind, Elsewhere) for kind in types):
            return _run(func, args, kwargs)
        _check_generator(func, kwargs, "cpu")
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with an operand or its result on the device."""
    packet, wanted = func.overloadpacket, kwargs.get("device")
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [operand for operand in operands if isinstance(operand, Elsewhere)]
    here = [operand for operand in operands if not isinstance(operand, Elsewhere) and operand.dim()]
    stays = _is_here(wanted) or (bool(there) and wanted is None)
    if packet is aten.copy_:
        stays = isinstance(args[0], Elsewhere)
    elif packet in _INDEXED:
        # As on a GPU: indices may come from the CPU, but then they are waited for.
        if not isinstance(args[0], Elsewhere):
            raise RuntimeError(f"{func}: a tensor on the CPU is indexed by one on {NAME}")
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype == torch.bool or not isinstance(index, Elsewhere) for index in indices):
            _wait(str(func))
    elif there and here and packet not in _HAND_OVER:
        raise RuntimeError(f"{func}: operands on {NAME} and, of shape {tuple(here[0].shape)}, on the CPU")
    if packet in _HAND_OVER and stays != isinstance(operands[-1], Elsewhere):  # the last one is what is copied
        hurried = kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2])
        if not (stays and hurried):
            _wait(str(func))
    elif packet in _READ_BACK and there:
        _wait(str(func))
    _check_generator(func, kwargs, NAME)
    if _is_here(wanted):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(operand.held): operand for operand in there}
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda each: each.held, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if not stays:
        return result
    return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else Elsewhere(each), result)


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _check_generator(func: Any, kwargs: dict[str, Any], device: str) -> None:
    generator = kwargs.get("generator")
    if generator is not None and _claimed.get(generator._cdata, "cpu") != device:
        raise RuntimeError(f"{func} on {device} with a generator of another device")


def _wait(what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if "sam_bench" in frame.filename]
    waits[f"{what} at {frames[-1].filename.split('sam_bench/')[-1]}:{frames[-1].lineno}" if frames else what] += 1


class _Backend:
    """What PyTorch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _then_sent(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made_and_sent(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = data.to(options.get("dtype")) if isinstance(data, Elsewhere) else make(data, **options)
        return made if device is None else made.to(device)

    return made_and_sent


_setup_privateuseone_for_python_backend(NAME, _Backend())
# Autocast is not simulated: everything is float32.
_library = torch.library.Library("_", "IMPL")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
# These are beyond the reach of a dispatch mode.
torch.tensor, torch.as_tensor = _then_sent(torch.tensor), _then_sent(torch.as_tensor)
torch.Generator = _Generator  # type: ignore[misc]
sam_bench.seeds.RowGenerator = _RowGenerator  # type: ignore[misc, assignment]
sys.modules.setdefault("elsewhere", sys.modules[__name__])
