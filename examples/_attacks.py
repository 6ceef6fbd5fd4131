"""Perturbations by kept libraries, all as (model, x, y, strength) -> perturbed x, for images in [0, 1]."""

import torch
from pyautoattack import AutoAttack
from secmlt.adv.backends import Backends
from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
from secmlt.adv.evasion.pgd import PGD
from torch import nn


def pgd(model, x, y, epsilon, steps=20, step_size=None):
    """Projected gradient ascent on the cross-entropy, each pixel within ±ε."""
    attack = PGD(
        perturbation_model=LpPerturbationModels.LINF,
        epsilon=epsilon,
        num_steps=steps + 1,  # secml-torch returns the best point it has evaluated, which its last step's is not
        step_size=step_size or epsilon / 4,
        backend=Backends.NATIVE,
    )
    ((perturbed, _),) = attack(model, [(x, y)], stream=True)
    return perturbed.detach()


def fgsm(model, x, y, epsilon):
    """One step along the gradient's sign, as long as the ball is wide."""
    return pgd(model, x, y, epsilon, steps=1, step_size=epsilon)


def gaussian_noise(model, x, y, sigma):
    generator = torch.Generator().manual_seed(0)
    return (x + sigma * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def autoattack(model, x, y, epsilon):
    """Accuracy under the standard AutoAttack: two gradient attacks, one of minimum norm, one without gradients."""
    images = x.unflatten(1, (1, 8, 8))  # its gradient-free part wants channels, rows and columns
    attack = AutoAttack(nn.Sequential(nn.Flatten(), model), norm="Linf", eps=epsilon, seed=0, version="standard")
    perturbed, _ = attack.run_standard_evaluation(images, y, batch_size=len(x))
    return (model(perturbed.flatten(1)).argmax(1) == y).float().mean().item()
