"""Lipschitz regularisation for PyTorch: one line in a training loop makes a model smoother."""

from torchlipreg.estimate import lipschitz_lower_bound
from torchlipreg.jacobian import operator_norm
from torchlipreg.penalty import LipschitzPenalty
from torchlipreg.quotient import difference_quotient
from torchlipreg.schedules import DiscrepancyWeight, RadiusDecay

__version__ = "0.1.0"
__all__ = [
    "DiscrepancyWeight",
    "LipschitzPenalty",
    "RadiusDecay",
    "difference_quotient",
    "lipschitz_lower_bound",
    "operator_norm",
]
