"""What a user would train with instead of a Lipschitz penalty: each is (model, x, y) -> loss, one step's worth.

Perturbations are bounded in ℓ∞ by `epsilon`, and images lie in `bounds`, as published; None lets adversarial training
leave the images' range. The gradients with respect to the images are taken by autograd.grad, which computes none for
the weights, so that no rival pays for what it does not use.
"""

import torch
import torch.nn.functional as F


def plain(model, x, y):
    return F.cross_entropy(model(x), y)


def fgsm_training(model, x, y, epsilon, bounds=(0, 1)):
    """Goodfellow et al., arXiv:1412.6572: the loss at the corner of the ε-cube that one gradient points to."""
    worst = x + epsilon * _gradient(lambda z: F.cross_entropy(model(z), y), x).sign()
    return F.cross_entropy(model(_project(worst, x, epsilon, bounds)), y)


def pgd_training(model, x, y, epsilon, steps=10, bounds=(0, 1)):
    """Madry et al., arXiv:1706.06083: the loss at the end of `steps` projected steps from a random start."""
    start = _project(x + epsilon * (2 * torch.rand_like(x) - 1), x, epsilon, bounds)
    worst = _ascend(lambda z: F.cross_entropy(model(z), y), start, x, epsilon, steps, bounds)
    return F.cross_entropy(model(worst), y)


def trades(model, x, y, epsilon, beta=6.0, steps=10):
    """Zhang et al., arXiv:1901.08573: the plain loss plus β times the divergence of the worst neighbour's output.

    The neighbour is looked for in eval mode, as by the authors.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        target = model(x).log_softmax(1)
    start = x + 1e-3 * torch.randn_like(x)  # the divergence has no gradient at x itself
    worst = _ascend(lambda z: _divergence(model(z), target), start, x, epsilon, steps, (0, 1))
    clean = model.train(was_training)(x)
    return F.cross_entropy(clean, y) + beta * _divergence(model(worst), clean.log_softmax(1))


def input_gradient(model, x, y, weight):
    """Drucker and LeCun, 1992: λ mean ‖∇ₓ loss‖₁², in the dual norm of ℓ∞, by double backward."""
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return losses.mean() + weight * gradient.flatten(1).abs().sum(1).square().mean()


def finite_differences(model, x, y, weight, step=0.1, power=2):
    """Finlay and Oberman, arXiv:1905.11468: the same gradient's norm by a difference of the loss along its sign."""
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    # The graph of the clean losses is kept: they are the loss as well.
    (gradient,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
    moved = F.cross_entropy(model((x + step * gradient.sign()).detach()), y, reduction="none")
    return losses.mean() + weight * ((moved - losses) / step).abs().pow(power).mean()


def random_jacobian(model, x, y, weight):
    """Hoffman et al., arXiv:1908.02729: λ/2 mean ‖J‖²_F, estimated by one random projection of the outputs."""
    x = x.detach().requires_grad_()
    outputs = model(x)
    v = F.normalize(torch.randn_like(outputs), dim=1)
    (projected,) = torch.autograd.grad(outputs, x, v, create_graph=True)
    estimate = outputs.shape[1] * projected.flatten(1).square().sum(1)
    return F.cross_entropy(outputs, y) + weight / 2 * estimate.mean()


def _divergence(outputs, log_target):
    return F.kl_div(outputs.log_softmax(1), log_target, reduction="batchmean", log_target=True)


def _ascend(objective, z, x, epsilon, steps, bounds):
    for _ in range(steps):
        z = _project(z + epsilon / 4 * _gradient(objective, z).sign(), x, epsilon, bounds)
    return z


def _gradient(objective, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(objective(z), z)[0]


def _project(z, x, epsilon, bounds):
    z = torch.minimum(torch.maximum(z, x - epsilon), x + epsilon).detach()
    return z if bounds is None else z.clamp(*bounds)
