"""Networks: ours and timm's, built for a data set, with input normalisation as the first layer."""

import sam_bench.models.preactresnet  # registers its architectures, as the next two do
import sam_bench.models.resnet
import sam_bench.models.wideresnet  # noqa: F401
from sam_bench.models.check import check_input_gradient, check_model
from sam_bench.models.factory import architecture_for, count_parameters, create_model
from sam_bench.models.gradient_from import GradientFrom
from sam_bench.models.normalize import NormalizedModel
from sam_bench.models.registry import (
    architecture_module,
    architecture_options,
    architectures,
    register_architecture,
)
from sam_bench.modes import attacking, batch_norm_statistics_kept, batch_norms, frozen, training_mode

__all__ = [
    "GradientFrom",
    "NormalizedModel",
    "architecture_for",
    "architecture_module",
    "architecture_options",
    "architectures",
    "attacking",
    "batch_norm_statistics_kept",
    "batch_norms",
    "check_input_gradient",
    "check_model",
    "count_parameters",
    "create_model",
    "frozen",
    "register_architecture",
    "training_mode",
]
