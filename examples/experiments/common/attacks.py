"""Perturbations by kept libraries, all as (model, x, y, strength) -> perturbed x, for images in [0, 1]."""

import torch
from pyautoattack import AutoAttack
from secmlt.adv.backends import Backends
from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
from secmlt.adv.evasion.pgd import PGD


def pgd(model, x, y, epsilon, steps=20, step_size=None, norm=LpPerturbationModels.LINF):
    """Projected gradient ascent on the cross-entropy, each image within ε in the norm: "linf" or "l2"."""
    attack = PGD(
        perturbation_model=norm,
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


def gaussian_noise(model, x, y, sigma, bounds=(0, 1)):
    generator = torch.Generator().manual_seed(0)  # of the processor: the same noise on every device
    noisy = x + sigma * torch.randn(x.shape, generator=generator).to(x.device)
    return noisy if bounds is None else noisy.clamp(*bounds)


def autoattack(model, x, y, epsilon, norm="linf", attacks=None, batch_size=250):
    """The standard AutoAttack on images (N, channels, rows, columns), or only `attacks` of its four.

    They are two gradient attacks (apgd-ce, apgd-t), one of minimum norm (fab-t) and one without gradients (square).
    """
    chosen = {"version": "standard"} if attacks is None else {"version": "custom", "attacks": list(attacks)}
    chosen |= {"norm": {"linf": "Linf", "l2": "L2"}[norm], "device": x.device}
    attack = AutoAttack(model, eps=epsilon, seed=0, **chosen)
    perturbed, _ = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    return perturbed.detach()
