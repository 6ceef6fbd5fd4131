"""Judge one sample: right, refused, or WRONG."""

import copy
import random
import warnings

import numpy as np
import torch
from zoo import same, traces

from sweep.oracle import METHOD, NEAR, calibrate, far_apart, gradient_of, norms_of, plain, slope
from sweep.sample import Skip, first_that_runs
from torchlipreg import LipschitzPenalty

EXACT, DIFFERENCES = 1e-7, 2e-3
LEAST_VARIANCE = 1e-3
SMALL = 3_000_000  # parameters, up to which central differences are taken


class Wrong(Exception):
    """What was not as it should be."""


def everything(net):
    """What a call must not change."""
    numbers = (
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
    )
    held = {name: {k: id(v) for k, v in vars(m).items()} for name, m in net.named_modules()}
    return traces(net), numbers, held


def called(sample, penalty, model, net):
    """The penalty's value, with everything as it was before."""
    before = everything(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = penalty(model, sample.x)
    for what, a, b in zip(("model", "random numbers", "attributes"), before, everything(net), strict=True):
        if a != b if what != "model" else not same(a, b):
            raise Wrong(f"a trace is left: {what}{[k for k in a if not same(a[k], b[k])] if what == 'model' else ''}")
    return value


def value_and_gradient(sample, net, radius, mode, model=None):
    """Compare value, and in eval mode gradient, with the plain ones at the same pairs; return how close these were."""
    net.train(mode)
    net.zero_grad()
    penalty = LipschitzPenalty(**{**METHOD, "radius": radius, "bounds": sample.bounds})
    value = called(sample, penalty, model or (lambda z: sample.call(net, z)), net)
    x, x_prime = penalty.pairs
    if value.requires_grad:
        value.backward()
    gradient = gradient_of([net])
    net.zero_grad()
    name = f"{'train' if mode else 'eval'} mode{', limit' if radius == 0 else ''}{', compiled' if model else ''}"
    for near, tolerance in NEAR if radius == 0 else ((1.0, EXACT),):
        wanted, theirs, rounding = plain(net, sample.call, x, x + near * (x_prime - x))
        if not wanted.isfinite():
            raise Skip("the plain reference is not finite at points near the inputs")
        flat = (rounding / (EXACT / 10) / radius) ** 2 if radius else 0.0
        if radius and wanted <= flat and value <= flat:
            raise Skip("constant up to rounding, as it is initialised")
        found = [(f"value in {name}", far_apart(value.detach().flatten(), wanted.flatten()) / tolerance)]
        if not mode:
            found.append((f"gradient in {name}", far_apart(gradient, theirs) / tolerance / 10))
        if max(off for _, off in found) <= 1:
            return near
    what, off = max(found, key=lambda each: each[1])
    raise Wrong(f"{what}: off by {off:.2g} tolerances")


def train_gradient(sample, net):
    """Compare the gradient in train mode with central differences, with statistics measured anew; say whether it was.

    Of two points that are pooled to one pixel the variance may vanish, and differences with it.
    """
    net.train()
    calibrate(net, sample.call, sample.x)
    if min(float(m.running_var.min()) for m in norms_of(net)) < LEAST_VARIANCE:
        return False
    penalty = LipschitzPenalty(**METHOD)
    value = called(sample, penalty, lambda z: sample.call(net, z), net)
    net.zero_grad()
    value.backward()
    said, measured = slope(net, sample.call, sample.x, penalty.pairs, gradient_of([net]))
    if abs(said - measured) > DIFFERENCES * max(abs(said), abs(measured), 1e-6):
        raise Wrong(f"gradient in train mode: {said:.6g}, differences say {measured:.6g}")
    return True


def refused(error):
    """Say whether an error was raised by the library, and not on its way through it."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return "torchlipreg" in frame.tb_frame.f_code.co_filename.replace("\\", "/").split("/")


def judge(build, compiled=False, differences=False):
    """Return an outcome with details: "right", "refused", "skipped" or "WRONG"."""
    torch.manual_seed(0)
    done = []
    try:
        sample = first_that_runs(build())
        net = sample.net
        for mode in (False, True):
            value_and_gradient(sample, net, METHOD["radius"], mode)
            done.append("train" if mode else "eval")
        limit = "right"
        try:
            near = value_and_gradient(sample, net, 0.0, False)
            done.append("limit" if near == NEAR[0][0] else "limit, coarsely")
        except RuntimeError as error:
            if not refused(error):
                raise
            limit = "refused"
        if compiled:
            model = torch.compile(copy.deepcopy(net), backend="aot_eager")
            net = model._orig_mod
            call = lambda z: sample.call(model, z)  # noqa: E731
            value_and_gradient(sample._replace(net=net), net, METHOD["radius"], False, call)
            done.append("compiled")
        if differences and norms_of(net) and 0 < sum(p.numel() for p in net.parameters()) < SMALL:
            done += ["differences"] if train_gradient(sample, net) else []
        return {"outcome": "right", "detail": sample.detail, "checks": done, "limit": limit}
    except Skip as error:
        return {"outcome": "skipped", "detail": str(error)}
    except Wrong as error:
        return {"outcome": "WRONG", "detail": f"{error} {sample.detail}".strip(), "checks": done}
    except Exception as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        outcome = "refused" if refused(error) and isinstance(error, (TypeError, ValueError, RuntimeError)) else "WRONG"
        return {"outcome": outcome, "detail": f"{type(error).__name__}: {first}", "checks": done}
