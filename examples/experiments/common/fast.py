"""Adversarial training with one gradient step per batch, the rivals of a cheap penalty: each is (model, x, y) -> loss.

Perturbations are bounded in ℓ∞ by `epsilon`, and images lie in `bounds`.
"""

import torch
import torch.nn.functional as F

from examples.experiments.common.rivals import _gradient, _project


def fgsm_random_start(model, x, y, epsilon, step=1.25, share=1.0, bounds=(0, 1)):
    """Wong et al., arXiv:2001.03994: a step of 1.25 ε from a random start; the rest of a batch stays as it is.

    The first `share` of the rows are perturbed: batches are shuffled, and the others take part in the loss.
    """
    count = round(share * len(x))
    moved = random_start(model, x[:count], y[:count], epsilon, step, bounds)
    return F.cross_entropy(model(torch.cat([moved, x[count:]])), y)


def random_start(model, x, y, epsilon, step=1.25, bounds=(0, 1)):
    start = _project(x + _uniform(x, epsilon), x, epsilon, bounds)
    return _project(start + step * epsilon * _slope(model, start, y).sign(), x, epsilon, bounds)


def noise_fgsm(model, x, y, epsilon, noise=2.0, step=1.0, bounds=(0, 1)):
    """De Jorge et al., arXiv:2202.01181 (N-FGSM): noise of twice ε, a step of ε, and no way back into the ε-cube.

    Their code brings the noisy start into the images' range as well, here only the end is.
    """
    return F.cross_entropy(model(noisy_step(model, x, y, epsilon, noise, step, bounds)), y)


def noisy_step(model, x, y, epsilon, noise=2.0, step=1.0, bounds=(0, 1)):
    start = x + _uniform(x, noise * epsilon)
    return (start + step * epsilon * _slope(model, start, y).sign()).clamp(*bounds)


class Memory:
    """What a training keeps of each image from epoch to epoch; `rows` are those of the present batch."""

    def __init__(self):
        self.kept, self.rows = {}, None

    def read(self, name, like, fresh):
        """Return a batch's tensors; those that were never written are of `fresh(like)`."""
        known, stored = (part[self.rows] for part in self._of(name, like))
        return torch.where(known.view(-1, *[1] * (like.dim() - 1)), stored, fresh(like))

    def write(self, name, values):
        known, stored = self._of(name, values)
        known[self.rows], stored[self.rows] = True, values

    def _of(self, name, like):
        """Return (which rows are known, their values), with room for those of the present batch."""
        empty = like.new_zeros(0, dtype=torch.bool), like.new_zeros(0, *like.shape[1:])
        parts = self.kept.get(name, empty)
        more = int(self.rows.max()) + 1 - len(parts[0])
        if more > 0:
            parts = tuple(torch.cat([part, part.new_zeros(more, *part.shape[1:])]) for part in parts)
            self.kept[name] = parts
        return parts


def prior_guided(model, x, y, epsilon, memory=None, decay=0.3, weight=10.0, smoothing=4 / 9, bounds=(0, 1)):
    """Jia et al., arXiv:2207.08859 (FGSM-MEP): the start is where earlier epochs' gradients, with momentum, have led.

    As in the authors' code, labels are smoothed (.6 for the true class), the distance of the outputs at start and end
    is penalised at both, and perturbations are kept in the frame of the augmented image.
    """
    delta = memory.read("delta", x, lambda x: epsilon * _uniform(x, 1).sign()).requires_grad_()
    before = model(x + delta)
    loss = F.cross_entropy(before, y, label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(loss, delta, retain_graph=True)  # `before` is a part of the loss below
    momentum = decay * memory.read("momentum", x, torch.zeros_like) + slope / slope.abs().sum()
    start = (x + delta).detach()
    memory.write("delta", _project(start + epsilon * momentum.sign(), x, epsilon, bounds) - x)
    memory.write("momentum", momentum)
    after = model(_project(start + epsilon * slope.sign(), x, epsilon, bounds))
    return F.cross_entropy(after, y, label_smoothing=smoothing) + weight * F.mse_loss(after, before)


def gaussian_noise(model, x, y, sigma):
    """Training on images with Gaussian noise."""
    return F.cross_entropy(model(x + sigma * torch.randn_like(x)), y)


def _uniform(x, radius):
    return radius * (2 * torch.rand_like(x) - 1)


def _slope(model, z, y):
    return _gradient(lambda z: F.cross_entropy(model(z), y), z)
