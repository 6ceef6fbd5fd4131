"""A pytest plugin: the tests of the Trainer on releases of transformers that name arguments otherwise or lack them.

PYTHONPATH=OLD_RELEASE:tests python -m pytest -p older_transformers tests/integrations/test_transformers.py
"""

from __future__ import annotations

import inspect
from functools import wraps

import pytest
from torch.utils.data import SequentialSampler
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

# What an older Trainer cannot do by itself, by the names of the tests.
LACKS = {
    "loss_that_is_said_to_be_a_mean": not hasattr(Trainer, "loss_is_scaled_for_ga"),
    "smoothed of items-2": "num_items_in_batch" not in inspect.signature(LabelSmoother.__call__).parameters,
}


def with_known_names(init):
    @wraps(init)
    def __init__(self, *args, **options):
        known = type(self).__dataclass_fields__
        if "train_sampling_strategy" in options and "train_sampling_strategy" not in known:
            self.sampling = options.pop("train_sampling_strategy")
            options["group_by_length"] = self.sampling == "group_by_length"
        if "activation_checkpointing" in options and "activation_checkpointing" not in known:
            options["gradient_checkpointing"] = options.pop("activation_checkpointing")
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}  # 4.x: else no gradient of inputs
        init(self, *args, **options)

    return __init__


def in_order_if_asked(get_train_sampler):
    @wraps(get_train_sampler)
    def _get_train_sampler(self, *args):
        if getattr(self.args, "sampling", None) == "sequential":
            return SequentialSampler(self.train_dataset)
        return get_train_sampler(self, *args)

    return _get_train_sampler


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:mtime may not be reliable")
    for kind in (TrainingArguments, Seq2SeqTrainingArguments):
        kind.__init__ = with_known_names(kind.__init__)
    Trainer._get_train_sampler = in_order_if_asked(Trainer._get_train_sampler)


def pytest_collection_modifyitems(items):
    for item in items:
        if any(lacks and name in item.name for name, lacks in LACKS.items()):
            item.add_marker(pytest.mark.skip(reason="this Trainer cannot"))
