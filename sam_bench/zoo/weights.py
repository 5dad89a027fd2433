"""State dicts as bytes, as digests, and fitted into modules: exact, strict, and with errors that say which tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sam_bench.errors import InputError, shortened

StorageDtype = Literal["fp32", "fp16"]
StateDict = Mapping[str, Tensor]


def pack(state: StateDict, dtype: StorageDtype = "fp32") -> bytes:
    """A state dict as the bytes of a safetensors file; equal tensors give equal bytes.

    Args:
        state: Tensors of any device, layout and sharing; they are stored contiguous, each on its own.
        dtype: "fp32" stores every tensor as it is; "fp16" rounds floating-point tensors to float16.

    Raises:
        InputError: A tensor holds NaN or infinity, or a value that float16 cannot hold.
    """
    bad = first_non_finite(state)
    if bad is not None:
        raise InputError(f"the weights are not saved: {bad} holds NaN or infinity (did the training diverge?)")
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    if dtype == "fp16":
        tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        bad = first_non_finite(tensors)
        if bad is not None:
            raise InputError(f"the weights do not fit float16: {bad} holds a value beyond 65504; store them as fp32")
    return safetensors.torch.save(tensors)


def unpack(content: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        content: The file's bytes.
        source: What the file is called in messages.

    Raises:
        InputError: The bytes are not a whole safetensors file.
    """
    try:
        return safetensors.torch.load(content)
    # Depending on what is damaged, safetensors complains in one of three types.
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{source} is not a whole safetensors file: {shortened(str(error))}") from error


def first_non_finite(state: StateDict) -> str | None:
    """The first key whose tensor holds NaN or infinity; None when all values are finite."""
    return next((shortened(key) for key, value in state.items() if not bool(torch.isfinite(value).all())), None)


def misfit(module: nn.Module, state: StateDict) -> str | None:
    """What keeps `state` from being exactly the module's state dict, in one clause; None when it fits."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    parts = []
    if missing:
        parts.append(f"{_listed(missing)} missing")
    if unexpected:
        parts.append(f"{_listed(unexpected)} not expected")
    for key in wanted:
        if key in state and wanted[key].shape != state[key].shape:
            parts.append(f"{key} has shape {list(state[key].shape)} where {list(wanted[key].shape)} belongs")
            break
    for key in wanted:
        if key in state and wanted[key].is_floating_point() and not _holds_numbers(state[key]):
            kind = "sparse" if state[key].layout != torch.strided else str(state[key].dtype).removeprefix("torch.")
            parts.append(f"{key} is {kind}, where a dense float tensor belongs: convert the weights to float32 first")
            break
    return "; ".join(parts) or None


def _holds_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has real values: quantised ones lack their scale, and copying casts them without a word."""
    return tensor.is_floating_point() and tensor.layout == torch.strided


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return ", ".join(shortened(key) for key in keys[:2]) + more


def fit(module: nn.Module, state: StateDict, source: str, into: str) -> None:
    """Load `state` into `module`, every key and shape exactly; values are cast to the module's dtypes.

    Args:
        module: The network; changed in place.
        state: Its tensors; float16 ones are widened without loss.
        source: What the tensors come from, for messages.
        into: What the module is called in messages.

    Raises:
        InputError: A key is missing, unexpected, of the wrong shape, or quantised.
    """
    problem = misfit(module, state)
    if problem is not None:
        raise InputError(f"{source} does not fit {into}: {problem}")
    module.load_state_dict(state, strict=True)


def state_dict_sha256(module: nn.Module | StateDict) -> str:
    """SHA-256 over a state dict: sorted keys, each with its dtype, shape and bytes.

    It identifies weights that have no file of their own, such as a downloaded model's; it does not
    depend on the device, the memory layout or the order of the keys.

    Returns:
        64 hexadecimal digits.
    """
    state = module.state_dict() if isinstance(module, nn.Module) else module
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
