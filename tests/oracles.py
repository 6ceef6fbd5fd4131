"""Slow, plain, obviously right twins of what the library computes: one pair and one coordinate at a time."""

import math

import torch

# ---- norms ----------------------------------------------------------------------------------------------------------


def norm_of(vector, p):
    """‖v‖ₚ of one tensor, coordinate by coordinate."""
    numbers = [abs(c) for c in vector.flatten().tolist()]
    if p == 1:
        return sum(numbers)
    if p == 2:
        return math.sqrt(sum(c * c for c in numbers))
    return max(numbers)


def matrix_norm(matrix, p, q):
    """The operator norm ‖M‖ from ℓp to ℓq, where a formula exists."""
    if p == 2 and q == 2:
        return torch.linalg.svdvals(matrix)[0].item()
    if p == 1:
        return max(norm_of(column, q) for column in matrix.T)
    dual = {2: 2, math.inf: 1}[p]
    if q == math.inf or len(matrix) == 1:
        return max(norm_of(row, dual) for row in matrix)
    raise ValueError(f"no formula from {p} to {q}")


def dense_jacobian(f, x):
    """The Jacobian of f at one point x, shape (*), as a matrix: one backward per output."""
    x = x.detach().clone().requires_grad_()
    y = f(x.unsqueeze(0).clone()).flatten()
    rows = [torch.autograd.grad(y_i, x, retain_graph=True, materialize_grads=True)[0].flatten() for y_i in y]
    return torch.stack(rows)


# ---- one pair -------------------------------------------------------------------------------------------------------


def lip(f, x, x_prime):
    """Lip(x₁, x₂) = ‖f(x₁) − f(x₂)‖ / ‖x₁ − x₂‖ of one pair, Euclidean."""
    difference = f(x.unsqueeze(0)) - f(x_prime.unsqueeze(0))
    return (difference**2).sum().sqrt() / ((x - x_prime) ** 2).sum().sqrt()


def squared_gradients(f, x, x_prime):
    """∇ₓ Lip(x, x′)² and ∇ₓ′ Lip(x, x′)² of one pair."""
    x, x_prime = x.detach().clone().requires_grad_(), x_prime.detach().clone().requires_grad_()
    difference = f(x.unsqueeze(0)) - f(x_prime.unsqueeze(0))
    squared = (difference**2).sum() / ((x - x_prime) ** 2).sum()
    return torch.autograd.grad(squared, (x, x_prime))


def quotients(f, pairs):
    """Lip of each pair of a list."""
    return torch.stack([lip(f, x, x_prime) for x, x_prime in pairs])


# ---- the report's algorithms: the update of X_lip, a list of pairs (x₁, x₂) -----------------------------------------


def sgdm(f, pairs, velocities, tau, momentum):
    """Algorithm 1, X_lip ← SGDM_τ(Lip(f, ·), X_lip), written out in the proof of Property 1. Returns both lists."""
    moved, new_velocities = [], []
    for (x, x_prime), (u, u_prime) in zip(pairs, velocities, strict=True):
        g, g_prime = squared_gradients(f, x, x_prime)
        u, u_prime = momentum * u + g, momentum * u_prime + g_prime
        moved.append((x + tau * u, x_prime + tau * u_prime))
        new_velocities.append((u, u_prime))
    return moved, new_velocities


def projected_tv(f, pairs, centres, tau, epsilon):
    """Algorithm 3: a gradient step of both points, then both onto the ε-sphere around the data point."""
    moved = []
    for (x_1, x_2), x in zip(pairs, centres, strict=True):
        g_1, g_2 = squared_gradients(f, x_1, x_2)
        x_1, x_2 = x_1 + tau * g_1, x_2 + tau * g_2
        x_1 = x + epsilon * (x_1 - x) / norm_of(x_1 - x, 2)
        x_2 = x + epsilon * (x_2 - x) / norm_of(x_2 - x, 2)
        moved.append((x_1, x_2))
    return moved


def random_tv(f, pairs, tau):
    """Algorithm 4: a gradient step of both points."""
    moved = []
    for x_1, x_2 in pairs:
        g_1, g_2 = squared_gradients(f, x_1, x_2)
        moved.append((x_1 + tau * g_1, x_2 + tau * g_2))
    return moved


def nesterov(f, pairs, tau, steps):
    """Algorithm 2 uphill, with the index of γ put right: γₖ = (1 − λₖ) / λₖ₊₁ and λ₁ = 1 (see ascent.Nesterov)."""
    moved = []
    for pair in pairs:
        theta, nu, lam = list(pair), list(pair), 1.0
        for _ in range(steps):
            gradients = squared_gradients(f, *nu)
            new_theta = [z + tau * g for z, g in zip(nu, gradients, strict=True)]
            new_lam = (1 + math.sqrt(1 + 4 * lam**2)) / 2
            gamma = (1 - lam) / new_lam
            nu = [gamma * old + (1 - gamma) * new for old, new in zip(theta, new_theta, strict=True)]
            theta, lam = new_theta, new_lam
        moved.append(tuple(theta))
    return moved


# ---- power steps ----------------------------------------------------------------------------------------------------


def power_step(f, x, x_prime, p):
    """Turn x′ around x to the vertex or direction of the ℓp-sphere that ∇‖f(x′) − f(x)‖² points to."""
    x_prime = x_prime.detach().clone().requires_grad_()
    difference = f(x_prime.unsqueeze(0)) - f(x.unsqueeze(0)).detach()
    g = torch.autograd.grad((difference**2).sum(), x_prime)[0]
    distance = norm_of(x_prime - x, p)
    if p == 2:
        return x + distance * g / norm_of(g, 2)
    direction, flat = torch.zeros_like(g).flatten(), g.flatten().tolist()
    for i, g_i in enumerate(flat):
        if p == math.inf or abs(g_i) == max(abs(c) for c in flat):
            direction[i] = math.copysign(1.0, g_i)
    return x + distance * direction.view_as(g)
