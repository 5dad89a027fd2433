"""What is installed, what device there is, what is wrong, and how to fix it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sam_bench.attacks import ATTACKS
from sam_bench.cores import take_spare_cores
from sam_bench.device import choose_device, choose_precision, cpu_flags, device_name, missing_for_compile
from sam_bench.errors import InputError
from sam_bench.integrations.shadowing import FIX, detect_shadowing
from sam_bench.models.registry import PLUGINS, architectures
from sam_bench.records.io import nearest_existing
from sam_bench.training import PARTS
from sam_bench.versions import package_versions
from sam_bench.zoo import Zoo, zoo_dir

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What was looked at.
        status: "ok", "note" (works, worth knowing) or "wrong" (something will fail).
        detail: What was found.
        fix: What to do about it; empty when nothing.
    """

    what: str
    status: Status
    detail: str
    fix: str = ""


def examine(*, data_dir: Path = Path("data"), zoo: Path | None = None) -> list[Finding]:
    """Look at everything the other commands rely on; no file is changed.

    Args:
        data_dir: Where torchvision's data sets are kept.
        zoo: Folder of the zoo; default as everywhere.
    """
    fewer_threads = take_spare_cores()  # as every run does: the precision is measured as a run would measure it
    return [
        _python(),
        Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in package_versions().items())),
        _device(fewer_threads),
        _precision(),
        _robustbench(),
        _package("autoattack", "autoattack", "pip install pyautoattack"),
        _package("timm", "timm", "pip install 'timm>=1.0.9'"),
        _writable("data folder", data_dir, "`data_dir`"),
        _zoo(zoo_dir(zoo)),
        _plugins(),
        _compiler(),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", "ok", f"{version} at {sys.executable}")
    return Finding("Python", "wrong", f"{version} at {sys.executable}", "use Python 3.10 to 3.13")


def _device(fewer_threads: str) -> Finding:
    if torch.cuda.is_available():
        return Finding("device", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    detail = "; ".join(filter(None, [device_name(torch.device("cpu")), fewer_threads, "no CUDA device"]))
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return Finding(
            "device", "wrong", f"{detail}, although nvidia-smi is here", "check the driver: nvidia-smi must list a GPU"
        )
    return Finding("device", "ok", detail)


def _precision() -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision, why = choose_precision("auto", device)
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags()]
    detail = f"training usually runs in {precision}: {why}"
    return Finding("precision", "ok", detail + (f"; CPU has {', '.join(units)}" if units else ""))


def _package(module: str, what: str, fix: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = importlib.import_module(module)
    except Exception as error:  # whatever is wrong with somebody's package is what a doctor reports
        return Finding(what, "wrong", f"import {module} fails: {type(error).__name__}: {error}", fix)
    origin = getattr(loaded, "__file__", None) or "sam_bench's shim"
    if "sam_bench" in origin:
        return Finding(what, "ok", f"imports, through sam-bench's adapter ({origin})")
    return Finding(what, "ok", f"imports from {origin}")


def _robustbench() -> Finding:
    culprit = detect_shadowing()
    if culprit is not None:
        return Finding("robustbench.benchmark", "wrong", f"robustbench's files were overwritten by {culprit}", FIX)
    return _package("robustbench", "robustbench.benchmark", "pip install 'robustbench>=1.1.1'")


def _writable(what: str, path: Path, option: str) -> Finding:
    there = nearest_existing(path)
    free = shutil.disk_usage(there).free / 1e9
    state = "is there" if path.exists() else "will be made when needed"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(what, "wrong", f"{path} cannot be written", f"choose another with {option}")
    if free < 1:
        return Finding(what, "note", f"{path} {state}; only {free:.1f} GB free", f"make room, or choose {option}")
    return Finding(what, "ok", f"{path} {state}; {free:.0f} GB free")


def _zoo(root: Path) -> Finding:
    place = _writable("zoo", root, "`zoo` or $SAM_BENCH_ZOO")
    if not root.is_dir() or place.status == "wrong":
        return place
    cards = [card for _, card in Zoo(root).scan()]
    broken = [str(card) for card in cards if isinstance(card, InputError)]
    usable = len(cards) - len(broken)
    holds = f"{root} holds {usable} model{'' if usable == 1 else 's'}"
    if broken:
        unread = f"{len(broken)} card{'' if len(broken) == 1 else 's'} that cannot be used"
        return Finding("zoo", "wrong", f"{holds}, and {unread}: {'; '.join(broken)}", "fix or delete the file named")
    return place if place.status == "note" else Finding("zoo", "ok", holds)


def _plugins() -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = [*PARTS.values(), ATTACKS]
        for registry in kinds:
            registry.names()
        architectures()
    groups = [*(registry.plugins for registry in kinds), PLUGINS]
    broken = [problem for group in groups for problem in group.broken.values()]
    if broken:
        return Finding("plug-ins", "wrong", "; ".join(broken), "fix or uninstall the package named")
    used = [name for group in groups for name in group.used]
    return Finding("plug-ins", "ok", ", ".join(used) or "none of other packages")


def _compiler() -> Finding:
    device, _ = choose_device("auto")
    missing = missing_for_compile(device)
    if missing is None:
        return Finding("torch.compile", "ok", f"has what it needs on {device.type}")
    return Finding("torch.compile", "note", f"needs a {missing} on {device.type}", "install gcc and g++, or clang")
