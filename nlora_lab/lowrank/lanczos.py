"""The largest eigenvalue of a loss's Hessian, which is never formed: products with it are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import check_count, check_generator, standard_normal

Times = Callable[[Tensor], Tensor]
"""A symmetric matrix (n, n), as what it does to a vector (n,)."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue λ of a symmetric matrix M, found by Lanczos' iteration.

    ``iterations``: products with M it took. ``residual``: ‖M u − λ u‖ / |λ|; there is an eigenvalue that close to λ,
    relatively, and usually one far closer. ``converged``: the residual got below what was asked. ``vector``: u, of
    length 1 over all the tensors together, shaped like the parameters.
    """

    value: float
    iterations: int
    residual: float
    converged: bool
    vector: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)


def largest_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    iterations: int = 40,
    rtol: float = 0.01,
    generator: torch.Generator | None = None,
    scale: Sequence[Tensor] | None = None,
    top: bool = False,
) -> Eigenvalue:
    """The eigenvalue of largest magnitude, with its sign, of the Hessian H of ``loss()`` by ``parameters``.

    Lanczos' iteration on products with H (Pearlmutter 1994), which are gradients of ``∇loss · v``: H, which has as many
    rows as there are trained numbers, is never formed. Every direction is made orthogonal to all before it, twice, so
    none comes back through rounding.

    Args:
        loss: computes the loss, a single number, anew; it is called once. Attention runs in plain arithmetic, since the
            fused kernels have no second derivative.
        parameters: the tensors H is taken by; all need ``requires_grad``.
        iterations: products with H, at most.
        rtol: stop once ``‖H u − λ u‖ ≤ rtol |λ|``. The error of λ itself is mostly of the order of its square; but from
            about 0.1 on the iteration may halt at the second largest eigenvalue before it has found the first.
        generator: for the random first direction.
        scale: D, a positive tensor for each parameter, for ``D^-1/2 H D^-1/2`` in place of H. With Adam's ``√v + eps``
            that is the matrix whose eigenvalues decide Adam's stability (Cohen et al., arXiv 2207.14484). Infinity
            leaves a number out.
        top: the largest eigenvalue in the order of numbers instead, the steepest *upward* curvature.

    Raises :class:`nlora_lab.InputError` for bad options, and for a loss that is not one finite number with finite
    gradients, or that does not depend on the parameters.
    """
    trained = list(parameters)
    check_count("iterations", iterations, 1, 10**6)
    check_tolerance(rtol)
    check_generator(generator)
    roots = _roots(scale, trained)
    hessian = Hessian(loss, trained)
    start = standard_normal(len(hessian.gradient), like=hessian.gradient, generator=generator)
    return _shaped(lanczos(hessian.seen_through(roots), start, iterations, rtol, top), trained)


class Hessian:
    """The Hessian of ``loss()`` by ``parameters``, all in one row of n numbers, at the point where they are now.

    ``loss``: the value there; ``gradient``: (n,). The loss is computed once, and its graph is kept.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        if not parameters or not all(p.requires_grad for p in parameters):
            raise InputError("parameters must be tensors with requires_grad, one at least: there is nothing to vary")
        self._parameters = list(parameters)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = loss()
            if value.numel() != 1 or not value.requires_grad:
                raise InputError("loss() must return one number that depends on the parameters, with its graph")
            slopes = torch.autograd.grad(value.sum(), self._parameters, create_graph=True, allow_unused=True)
        self.loss = float(value.detach())
        self.gradient = flat(filled(slopes, self._parameters))
        if not math.isfinite(self.loss) or not bool(self.gradient.isfinite().all()):
            raise InputError(f"the loss ({self.loss:g}) or its gradient is not finite; measure where it is")
        # a parameter that enters linearly has a constant slope, which has no graph
        self._slopes = [slope for slope in slopes if slope is not None and slope.requires_grad]
        self._bent = [i for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad]

    def times(self, v: Tensor) -> Tensor:
        """``H v`` for v (n,)."""
        if not self._bent:
            return torch.zeros_like(v)
        parts = split(v, self._parameters)
        directions = [parts[i] for i in self._bent]
        products = torch.autograd.grad(self._slopes, self._parameters, directions, retain_graph=True, allow_unused=True)
        return flat(filled(products, self._parameters))

    def seen_through(self, roots: Tensor | None) -> Times:
        """``diag(roots) H diag(roots)``; H itself without ``roots`` (n,)."""
        return self.times if roots is None else lambda v: roots * self.times(roots * v)


def lanczos(times: Times, start: Tensor, iterations: int, rtol: float, top: bool = False) -> Eigenvalue:
    """The extreme eigenvalue of ``times`` that :func:`largest_eigenvalue` describes, from the direction ``start`` (n,).

    Golub and Van Loan, Matrix Computations, 10.1, with full reorthogonalisation. Its ``vector`` is a single (n,).
    """
    iterations = min(iterations, len(start))
    basis = start.new_empty(iterations, len(start))
    diagonal, beside = list[float](), list[float]()
    q = start / torch.linalg.vector_norm(start)
    while True:
        basis[len(diagonal)] = q
        w = times(q)
        diagonal.append(float(w @ q))
        known = basis[: len(diagonal)]
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beside.append(float(torch.linalg.vector_norm(w)))
        if not math.isfinite(diagonal[-1] + beside[-1]):
            return Eigenvalue(math.nan, len(diagonal), math.nan, False)
        value, weights, size = _ritz(diagonal, beside, top)
        missed = beside[-1] * abs(float(weights[-1]))
        # nothing is left of w but rounding: the directions so far hold all that M does to the start
        exhausted = beside[-1] <= 10 * torch.finfo(start.dtype).eps * size
        if exhausted or missed <= rtol * abs(value) or len(diagonal) == iterations:
            residual = missed / abs(value) if value else 0.0 if exhausted else math.inf
            found = weights.to(start.dtype).to(start.device) @ known
            return Eigenvalue(value, len(diagonal), residual, exhausted or residual <= rtol, (found,))
        q = w / beside[-1]


def _ritz(diagonal: Sequence[float], beside: Sequence[float], top: bool) -> tuple[float, Tensor, float]:
    """The wanted eigenvalue of the tridiagonal matrix, its vector, and the largest magnitude."""
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    sizes = values.abs()
    at = len(values) - 1 if top else int(sizes.argmax())
    return float(values[at]), vectors[:, at], float(sizes.max())


def check_tolerance(rtol: float) -> None:
    """Raise :class:`nlora_lab.InputError` unless ``rtol`` is at least 0 and below 1."""
    if isinstance(rtol, bool) or not isinstance(rtol, int | float) or not 0 <= rtol < 1:
        raise InputError(f"rtol={rtol!r} must be at least 0 and below 1; 0.01 is good")


def _roots(scale: Sequence[Tensor] | None, parameters: Sequence[Tensor]) -> Tensor | None:
    """``D^-1/2`` as one row."""
    if scale is None:
        return None
    if [tuple(s.shape) for s in scale] != [tuple(p.shape) for p in parameters]:
        raise InputError("scale must have a tensor for each parameter, of its shape")
    if not all(bool((s > 0).all()) for s in scale):
        raise InputError("scale must be positive everywhere (infinity leaves a number out); add Adam's eps to it")
    return flat(scale).rsqrt()


def _shaped(found: Eigenvalue, like: Sequence[Tensor]) -> Eigenvalue:
    return found if found.vector is None else replace(found, vector=tuple(split(found.vector[0], like)))


def filled(parts: Iterable[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """``parts`` with zeros where there is nothing: autograd has no gradient for what the loss does not use."""
    return [torch.zeros_like(p) if part is None else part for part, p in zip(parts, like, strict=True)]


def flat(parts: Iterable[Tensor]) -> Tensor:
    """All numbers in one row (n,), detached."""
    return torch.cat([t.detach().reshape(-1) for t in parts])


def split(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """``v`` (n,) in pieces of the shapes of ``like``."""
    return [part.view_as(p) for part, p in zip(torch.split(v, [p.numel() for p in like]), like, strict=True)]
