"""Lipschitz regularisation for PyTorch: one line in a training loop makes a model smoother."""

from torchlipreg.gradients import gradient_ratio
from torchlipreg.measure import difference_quotient, lipschitz_lower_bound, operator_norm
from torchlipreg.penalty import LipschitzPenalty
from torchlipreg.schedules import DiscrepancyWeight, ExponentialWeight, RadiusDecay
from torchlipreg.warmup import WeightWarmup

__version__ = "0.2.0"
__all__ = [
    "DiscrepancyWeight",
    "ExponentialWeight",
    "LipschitzPenalty",
    "RadiusDecay",
    "WeightWarmup",
    "difference_quotient",
    "gradient_ratio",
    "lipschitz_lower_bound",
    "operator_norm",
]
