"""Reading weights from a file that somebody else may have made: tensors only, never code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError, shortened
from sam_bench.zoo.weights import fit, misfit, unpack

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of (Distributed)DataParallel, torch.compile, and wrappers


def what_is_wrong(path: Path) -> str | None:
    """Why a file's first bytes rule it out as a checkpoint, as a clause; None if they do not."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            "is an HTML page saved as a checkpoint, as happens when Google Drive answers a download with a "
            "confirmation or quota page; delete it and download the file again"
        )
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    return None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint: safetensors, or PyTorch's format without any code in it.

    Args:
        path: `.safetensors`, or a `torch.save` of a state dict or of a dict that holds one under
            "state_dict", "model_state_dict", "model" or "net".

    Returns:
        The state dict as stored, on the CPU.

    Raises:
        InputError: The file does not exist, is damaged, is a web page, holds anything but tensors,
            or is a pickle with code, which is refused without running it.
    """
    try:
        if not path.is_file():
            raise InputError(f"no such checkpoint file: {path}")
        wrong = what_is_wrong(path)
        if wrong is not None:
            raise InputError(f"{path} {wrong}")
        if _is_safetensors(path):
            return unpack(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return _tensors_of(_torch_load(path), path)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _torch_load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = str(error)
        if "truncated" in message:
            raise InputError(f"{path} is cut short or damaged: {shortened(message.splitlines()[0])}") from error
        raise InputError(
            f"{path} is refused: it is a pickle that holds more than tensors, and loading such a file can run any "
            "code; nothing of it was run. Ask for the weights alone: "
            "torch.save(model.state_dict(), 'weights.pt'), or safetensors"
        ) from error
    # A damaged file makes the reader fail anywhere, in any of these types.
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()
        said = shortened(reason[0]) if reason else type(error).__name__
        raise InputError(f"{path} is cut short, damaged or not a checkpoint: {said}") from error


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for candidate in (content, *(content[key] for key in WRAPPERS if key in content)):
            if (
                isinstance(candidate, Mapping)
                and candidate
                and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())
            ):
                return dict(candidate)
    found = (
        f"a dict with the keys {shortened(str(sorted(map(str, content))[:5]))}"
        if isinstance(content, Mapping)
        else (f"a {type(content).__name__}")
    )
    raise InputError(f"{path} holds no state dict but {found}; right is a dict of tensors, alone or under 'state_dict'")


def fit_external(module: nn.Module, state: Mapping[str, Tensor], source: str, into: str) -> None:
    """Load a state dict that other code saved: prefixes of wrappers are added or removed, the rest is strict.

    The keys of a bare network lack "net."; those of a network trained in parallel start with "module.".
    What the network says it ignores (`ignored_keys`) is left out. Every other key and shape must be the module's.

    Raises:
        InputError: No such renaming makes it fit; says what differs in the nearest one.
    """
    fit(module, renamed_for(module, state), source, into)


def renamed_for(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the module's keys, as far as adding or removing prefixes makes it so; see `fit_external`."""
    ignored = tuple(f"net.{key}" for key in getattr(getattr(module, "net", module), "ignored_keys", ()))
    candidates = [
        {key: value for key, value in renamed.items() if not key.startswith(ignored)}
        for renamed in _renamings(dict(state))
    ]
    wanted = set(module.state_dict())
    fitting = (candidate for candidate in candidates if misfit(module, candidate) is None)
    nearest = max(candidates, key=lambda candidate: len(wanted & set(candidate)))
    return next(fitting, nearest)


def _renamings(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict with one wrapper's prefix after the other taken off, each also below "net."."""
    yield state
    yield {f"net.{key}": value for key, value in state.items()}
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            yield from _renamings({key.removeprefix(prefix): value for key, value in state.items()})
