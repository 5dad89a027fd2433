"""How methods, architectures, attacks and numbers are called in an entry, a table and a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_bench.records import Architecture, ComponentSpec, EvaluationRecord, Radius, Recipe

AUTOATTACK = "autoattack"
"""The row name of AutoAttack's standard version, the only one that RobustBench's number may come from."""

# Spellings that no rule gives; everything else is spelt by `spelled`.
_SPELLINGS = {
    "autoattack": "AutoAttack",
    "cross-entropy": "cross-entropy",
    "fast": "Fast",
    "looksam": "LookSAM",
    "rice": "Rice",
    "trades": "TRADES",
    "vasso": "VaSSO",
    "vit": "ViT",
}
_FAMILIES = {"preactresnet": "PreActResNet", "resnet": "ResNet"}
_WIDTH_OF_THE_PAPERS = 64


def spelled(name: str) -> str:
    """A registered name as prose writes it: `sam` SAM, `pgd-20` PGD-20, `standard` Standard, `sam-at` SAM-AT."""
    if name in _SPELLINGS:
        return _SPELLINGS[name]
    parts = re.split(r"([-_ ])", name)
    return "".join(_SPELLINGS.get(part, part.upper() if _is_acronym(part) else part.capitalize()) for part in parts)


def _is_acronym(part: str) -> bool:
    return part.isalpha() and len(part) <= 4


def method_label(recipe: Recipe) -> str:
    """The recipe's name with the settings that tell it apart: `SAM rho=0.2`, `AT Linf 8/255`, `Standard`.

    A part that the recipe's name does not already name is named: `AT Linf 8/255, AWP gamma=0.005`.
    """
    named = set(re.split(r"[-_]", recipe.name.lower())) | {recipe.name.lower()}
    telling = []
    if recipe.inputs.method != "none":
        telling.append(_radius(recipe.inputs) or _named(recipe.inputs, named))
    if recipe.weights.method != "none":
        telling.append(_named(recipe.weights, named))
    for part, plain in ((recipe.objective, "cross-entropy"), (recipe.averaging, "none")):
        if part.method != plain and part.method not in named:
            telling.append(spelled(part.method))
    # `at-linf-1` has its radius in its name, and in its settings, which may have been given anew.
    plain = re.sub(r"-(linf|l[0-9])-[0-9]+$", "", recipe.name) if _radius(recipe.inputs) else recipe.name
    return f"{spelled(plain)} {', '.join(telling)}".strip()


def _named(spec: ComponentSpec, named: set[str]) -> str:
    """A part's telling setting, after the part's own name where the recipe's does not have it."""
    setting = _first_setting(spec)
    return setting if spec.method in named and setting else f"{spelled(spec.method)} {setting}".strip()


def _radius(spec: ComponentSpec) -> str:
    settings = spec.settings
    return f"{settings['norm']} {settings['eps']}" if {"norm", "eps"} <= set(settings) else ""


def _first_setting(spec: ComponentSpec) -> str:
    # A radius says most, wherever it stands.
    for key in sorted(spec.settings, key=lambda name: name != "rho"):
        value = spec.settings[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{key}={value:g}"
        if isinstance(value, str):
            return f"{key}={value}"
    return ""


def family(method: str) -> str:
    """The part of a method's label before its settings; methods of one family share a colour."""
    return method.split(" ", 1)[0]


def architecture_label(architecture: Architecture) -> str:
    """The network as papers call it: `PreActResNet-18`, and where it differs from theirs: `(width 8, silu)`."""
    return network_label(architecture.name, architecture.options)


def network_label(name: str, options: Mapping[str, Any]) -> str:
    """As `architecture_label`, of a registered name and its options: `WideResNet-28-10`."""
    options, label = dict(options), name.rpartition(":")[2]
    numbered = re.fullmatch(r"([a-z]+?)(\d+)", label)
    if numbered and numbered[1] in _FAMILIES:
        label = f"{_FAMILIES[numbered[1]]}-{numbered[2]}"
    if name == "wideresnet":
        label = f"WideResNet-{options.pop('depth', 28)}-{options.pop('width', 10)}"
    telling = []
    if options.get("width", _WIDTH_OF_THE_PAPERS) != _WIDTH_OF_THE_PAPERS:
        telling.append(f"width {options['width']}")
    if "patch_size" in options:
        telling.append(f"patch {options['patch_size']}")
    if options.get("activation", "relu") != "relu":
        telling.append(options["activation"])
    return f"{label} ({', '.join(telling)})" if telling else label


def attack_name(record: EvaluationRecord) -> str:
    """What a row calls the record's attack: `autoattack-rand`, `pgd-20`, `pgd-20x5`, `autoattack-sampled-0.1`.

    Attacks of different strength get different names, so that no table ranks one against the other.
    Only AutoAttack's standard version is called plainly `autoattack`.
    """
    name = record.attack
    if record.version and (name, record.version) != (AUTOATTACK, "standard"):
        name += f"-{record.version}"
        name += "".join(f"-{part}" for part in record.settings.get("suite", ()))
    if record.sampled is not None:
        name += f"-{record.settings.get('sample')}"
    steps, restarts = _count(record.settings.get("steps")), _count(record.settings.get("restarts"))
    if steps:
        name += f"-{steps}" + (f"x{restarts}" if restarts > 1 else "")
    if "step_size" in record.settings:
        name += f"-step-{record.settings['step_size']}".replace("/", "over")
    if record.settings.get("random_start") is False:
        name += "-no-random-start"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def split_warnings(warnings: Iterable[str]) -> tuple[list[str], list[str]]:
    """An attack's warnings about its own result, and those of a second attack, without their code."""
    own, others = [], []
    for warning in warnings:
        code, _, text = warning.partition(": ")
        if code == "second-opinion":
            others.append(text)
        else:
            own.append(warning)
    return own, others


def radius_text(eps: Radius) -> str:
    """The radius as written, without spaces: `8/255`."""
    return "".join(str(eps).split())


def radius_key(eps: Radius) -> float:
    """Equal for radii that are the same number however written (`8/255`, `0.031372549`)."""
    return round(float(eps), 8)


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as RobustBench writes accuracies: `"93.25"`."""
    return f"{100 * fraction:.2f}"


def count_text(number: float | None) -> str:
    """A number of epochs or passes: whole without a point, else one decimal; thousands apart; "?" if not known."""
    if number is None:
        return "?"
    return f"{number:,.0f}" if abs(number - round(number)) < 0.05 else f"{number:,.1f}"


def parameters_text(number: int) -> str:
    """A number of parameters to three digits: `175k`, `11.2M`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            value = number / limit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return str(number)


def examples_text(number: int) -> str:
    """`1 test example`, `10,000 test examples`."""
    return f"{number:,} test example{'' if number == 1 else 's'}"
