"""Plain formulas of linear algebra whose forward-mode derivatives torch differentiates wrongly.

``solve`` and determinants, ``tensorsolve`` and Householder products have right derivatives, but wrong gradients of
them; of ``cholesky_inverse`` and ``triangular_solve`` the derivative itself is wrong (found with torch 2.14). Inverse,
QR, LU, Cholesky, singular values and eigenvalues are right; the gradient through eigenvectors is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def solve(A: Tensor, B: Tensor, *, left: bool = True, out: Tensor | None = None) -> Any:
    """Return what ``torch.linalg.solve`` does, by the inverse."""
    if out is not None:
        return torch.linalg.solve(A, B, left=left, out=out)
    return _product(torch.linalg.inv(A), B, left=left)


def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False, out: Any = None) -> Any:
    """Return what ``torch.linalg.solve_ex`` does: also where it failed."""
    exact = torch.linalg.solve_ex(A.detach(), B.detach(), left=left, check_errors=check_errors, out=out)
    if out is not None:
        return exact
    return type(exact)((_product(torch.linalg.inv_ex(A).inverse, B, left=left), exact[1]))


def _product(inverse: Tensor, B: Tensor, *, left: bool) -> Tensor:
    if B.dim() == 1 or (inverse.dim() - 1 == B.dim() and B.shape == inverse.shape[:-1]):  # vectors
        return (inverse @ B.unsqueeze(-1)).squeeze(-1)
    return inverse @ B if left else B @ inverse


def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None, *, out: Tensor | None = None) -> Any:
    """Return what ``torch.linalg.tensorsolve`` does."""
    if out is not None:
        return torch.linalg.tensorsolve(A, B, dims, out=out)
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.dim() - len(dims), A.dim())))
    return solve(A.reshape(B.numel(), B.numel()), B.flatten()).view(A.shape[B.dim() :])


def triangular_solve(
    b: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    """Return what ``torch.triangular_solve`` does, which torch is going to remove."""
    matrix, is_upper = (A.mT, not upper) if transpose else (A, upper)
    solution = torch.linalg.solve_triangular(matrix, b, upper=is_upper, unitriangular=unitriangular)
    return torch.return_types.triangular_solve((solution, A.clone()))


def cholesky_inverse(L: Tensor, upper: bool = False, *, out: Tensor | None = None) -> Tensor:
    """Return what ``torch.cholesky_inverse`` does."""
    if out is not None:
        return out.copy_(cholesky_inverse(L, upper))
    L = L.triu() if upper else L.tril()
    inverse: Tensor = torch.linalg.inv(L.mH @ L if upper else L @ L.mH)
    return inverse


def householder_product(A: Tensor, tau: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return what ``torch.linalg.householder_product`` does: the first columns of a product of reflections."""
    if out is not None:
        return out.copy_(householder_product(A, tau))
    rows, columns = A.shape[-2:]
    eye = torch.eye(rows, dtype=A.dtype, device=A.device)
    v = (A.tril(-1) + eye[:, :columns])[..., : tau.shape[-1]]
    product = eye[:, :columns].expand(A.shape)
    for i in reversed(range(tau.shape[-1])):  # on the columns that are asked for alone
        along = v[..., i : i + 1]
        product = product - tau[..., i, None, None] * along @ (along.mH @ product)
    return product


def slogdet(A: Tensor) -> Any:
    """Return what ``torch.linalg.slogdet`` does, by the diagonal of QR's triangle: sign and logarithm."""
    exact = torch.linalg.slogdet(A.detach())
    logarithm = torch.linalg.qr(A).R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return type(exact)((exact[0], logarithm))


def det(A: Tensor) -> Tensor:
    """Return what ``torch.linalg.det`` does; of singular matrices of more than three rows the gradient is NaN."""
    size = A.shape[-1]
    if size == 1:
        return A[..., 0, 0]
    if size == 2:
        return A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
    if size == 3:
        triple: Tensor = (A[..., 0, :] * torch.linalg.cross(A[..., 1, :], A[..., 2, :])).sum(-1)
        return triple
    sign, logarithm = slogdet(A)
    value: Tensor = sign * logarithm.exp()
    return value


def logdet(A: Tensor) -> Tensor:
    """Return what ``torch.logdet`` does: NaN where the determinant is negative."""
    sign, logarithm = slogdet(A)
    return torch.where(sign < 0, torch.nan, logarithm)


LINEAR_ALGEBRA: dict[Any, Callable[..., Any]] = {
    torch.linalg.solve: solve,
    torch.linalg.solve_ex: solve_ex,
    torch.linalg.tensorsolve: tensorsolve,
    **{getattr(of, "triangular_solve", None): triangular_solve for of in (torch, Tensor)},
    **dict.fromkeys((torch.cholesky_inverse, Tensor.cholesky_inverse), cholesky_inverse),
    **dict.fromkeys((torch.linalg.householder_product, torch.orgqr, Tensor.orgqr), householder_product),
    **dict.fromkeys((torch.linalg.det, torch.det, Tensor.det), det),
    **dict.fromkeys((torch.linalg.slogdet, torch.slogdet, Tensor.slogdet), slogdet),
    **dict.fromkeys((torch.logdet, Tensor.logdet), logdet),
}
