"""Where tests marked gpu run: on a GPU, or, to see that they run at all, on the CPU (`make gpu-rehearsal`)."""

import os

import pytest
import torch

REHEARSAL = os.environ.get("TORCHLIPREG_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
NEEDED = pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="needs a CUDA device")


class _Marks(list):
    """For `pytestmark = on_gpu`, and as a decorator."""

    def __call__(self, function):
        for mark in self:
            function = mark(function)
        return function


on_gpu = _Marks([pytest.mark.gpu, NEEDED])
