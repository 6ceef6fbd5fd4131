"""What a penalty should be, from copies of the model in eval mode, one for each point."""

import copy
import math

import torch
from torch import Tensor, nn

METHOD = {"method": "tv", "weight": 1.0, "radius": 0.1, "input_norm": 2, "scale": 1.0}
# Where the limit ε → 0 is compared with a plain quotient, and to what: first as in float64, then as in a model that
# computes in float32 inside.
NEAR = ((1e-6, 1e-4), (1e-4, 1e-3), (1e-2, 1e-2))


def tensor_of(y):
    if isinstance(y, Tensor):
        return y
    if getattr(y, "logits", None) is not None:
        return y.logits
    if isinstance(y, dict):
        return y["logits"] if "logits" in y else next(iter(y.values()))
    return y[0]


def gradient_of(nets):
    """The sum of the copies' gradients, in one vector."""
    parts = [
        torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()])
        for net in nets
        if any(True for _ in net.parameters())
    ]
    return sum(parts) if parts else torch.zeros(0, dtype=torch.float64)


def plain(net, call, x, x_prime):
    """mean ‖f(x′) − f(x)‖² / ‖x′ − x‖² with its gradient, from a fresh copy in eval mode for each point.

    And how much rounding may move f.
    """
    ends = []
    for z in (x, x_prime):
        fresh = copy.deepcopy(net).train().eval()  # LeViT empties a cache in train()
        for p in fresh.parameters():
            p.grad = None
        ends.append((fresh, tensor_of(call(fresh, z.clone()))))
    moved = (ends[1][1] - ends[0][1]).reshape(len(x), -1)
    q = moved.norm(dim=1) / (x_prime - x).reshape(len(x), -1).norm(dim=1)
    value = q.square().mean()
    if value.requires_grad:
        value.backward()
    size = max(y.detach().abs().max() for _, y in ends)
    return value.detach(), gradient_of([fresh for fresh, _ in ends]), torch.finfo(size.dtype).eps * size


def far_apart(a, b):
    """The distance of two vectors, relative to the larger: 0 for equal ones."""
    size = max(float(a.norm()), float(b.norm()))
    distance = float((a - b).norm())
    return 0.0 if distance == 0 else distance / size if size > 0 and math.isfinite(size) else math.inf


# ---- the gradient in train mode --------------------------------------------------------------------------------------


def norms_of(net):
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]


def calibrate(net, call, x):
    """Set running statistics to those of the batch, layer by layer in eval mode."""

    def set_statistics(m, inputs):
        h = inputs[0].detach()
        m.running_var, m.running_mean = torch.var_mean(h, [0, *range(2, h.dim())], correction=0)

    modes = {m: m.training for m in net.modules()}
    hooks = [m.register_forward_pre_hook(set_statistics) for m in norms_of(net)]
    with torch.no_grad():
        call(net.eval(), x.clone())
    for m, mode in modes.items():
        m.training = mode
    [hook.remove() for hook in hooks]


def slope(net, call, x, pairs, gradient, h=1e-5):
    """Along a random direction: what a gradient says, and what differences say with statistics measured anew."""
    generator = torch.Generator().manual_seed(5)
    parameters = list(net.parameters())
    moves = [
        torch.randn(p.shape, dtype=p.dtype, generator=generator) * (p.detach().std() if p.numel() > 1 else 1)
        for p in parameters
    ]
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p, move in zip(moved.parameters(), moves, strict=True):
                p += sign * h * move
        calibrate(moved, call, x)
        values.append(float(plain(moved, call, *pairs)[0]))
    said = float((gradient * torch.cat([move.flatten() for move in moves])).sum())
    return said, (values[0] - values[1]) / (2 * h)
