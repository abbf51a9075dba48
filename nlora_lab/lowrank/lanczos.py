"""The largest eigenvalue of the Hessian of a loss, by Lanczos' iteration. The Hessian itself is never formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nlora_lab.core.array_types import Float, Float64
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.checks import check_generator, check_rtol, standard_normal

MatrixProduct = Callable[[Tensor], Tensor]
"""A symmetric matrix (n, n), given by the function v ↦ M v of vectors (n,)."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue λ of a symmetric matrix M, with its error bound.

    Attributes:
        value: λ. NaN if a product with M was not finite.
        iterations: the number of products with M that it took.
        residual: ``‖M u − λ u‖ / |λ|``. M has an eigenvalue that is relatively this close to λ, and usually one that is
            far closer.
        converged: whether the residual reached the requested tolerance.
        vector: the eigenvector u, as one tensor for each parameter, in the shapes of the parameters. Its length over
            all tensors together is 1.
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
    """Compute the eigenvalue of largest magnitude, with its sign, of the Hessian H of a loss.

    Lanczos' iteration needs only products with H. They are gradients of ``∇loss · v`` (Pearlmutter 1994), so H, which
    has one row per trained number, is never formed. Every direction is made orthogonal to all directions before it,
    twice, so that none returns through rounding.

    Args:
        loss: computes the loss, a single number. It is called once. Attention runs in plain arithmetic, since the fused
            kernels have no second derivative.
        parameters: the tensors that H is taken by, of any shapes. All need ``requires_grad``.
        iterations: the largest number of products with H, from 1 on.
        rtol: stop once ``‖H u − λ u‖ ≤ rtol |λ|``, from 0 to below 1. The error of λ itself is mostly of the order of
            its square. From about 0.1 on, the iteration may stop at the second largest eigenvalue before it reaches the
            first.
        generator: the source of the random first direction. ``None`` means torch's global one.
        scale: D, one positive tensor for each parameter, of its shape. The matrix is then ``D^-1/2 H D^-1/2`` instead
            of H. With Adam's ``√v + eps``, its eigenvalues decide the stability of Adam (Cohen et al., arXiv
            2207.14484). Infinity leaves a number out.
        top: compute the largest eigenvalue in the order of numbers instead, the steepest *upward* curvature.

    Returns:
        The eigenvalue with its residual and its eigenvector.

    Raises:
        InputError: an option is out of range; the loss is not one finite number with finite gradients; or it does not
            depend on the parameters.
    """
    trained = list(parameters)
    check_whole_number("iterations", iterations, 1, 10**6)
    check_rtol(rtol)
    check_generator(generator)
    roots = _inverse_roots(scale, trained)
    hessian = Hessian(loss, trained)
    start = standard_normal(len(hessian.gradient), like=hessian.gradient, generator=generator)
    eigenvalue = lanczos_iteration(hessian.scaled(roots), start, iterations, rtol, top)
    if eigenvalue.vector is None:
        return eigenvalue
    return replace(eigenvalue, vector=tuple(unflatten(eigenvalue.vector[0], trained)))


class Hessian:
    """The Hessian of a loss by some parameters, at the point where they are now.

    The n numbers of all parameters form one vector. The loss is computed once, and its graph is kept.

    Args:
        loss: computes the loss, a single number.
        parameters: tensors of any shapes with ``requires_grad``.

    Attributes:
        loss: the value of the loss.
        gradient: the gradient, (n,).

    Raises:
        InputError: no parameter can vary; or the loss is not one finite number with finite gradients that
            depends on the parameters.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        if not parameters or not all(p.requires_grad for p in parameters):
            raise InputError("parameters must be at least one tensor, all with requires_grad; there is nothing to vary")
        self._parameters = list(parameters)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = loss()
            if value.numel() != 1 or not value.requires_grad:
                raise InputError("loss() must return one number that depends on the parameters, with its graph")
            gradients = torch.autograd.grad(value.sum(), self._parameters, create_graph=True, allow_unused=True)
        self.loss = float(value.detach())
        self.gradient: Float[Tensor, " n"] = flatten(fill_missing(gradients, self._parameters))
        if not math.isfinite(self.loss) or not bool(self.gradient.isfinite().all()):
            raise InputError(f"the loss ({self.loss:g}) or its gradient is not finite; measure where it is")
        # a parameter that enters linearly has a constant gradient, which has no graph
        self._varying = [i for i, part in enumerate(gradients) if part is not None and part.requires_grad]
        self._gradients = [part for part in gradients if part is not None and part.requires_grad]

    def times(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return ``H v``, (n,), for a vector (n,)."""
        if not self._varying:
            return torch.zeros_like(v)
        parts = unflatten(v, self._parameters)
        directions = [parts[i] for i in self._varying]
        products = torch.autograd.grad(
            self._gradients, self._parameters, directions, retain_graph=True, allow_unused=True
        )
        return flatten(fill_missing(products, self._parameters))

    def scaled(self, roots: Float[Tensor, " n"] | None) -> MatrixProduct:
        """Return ``diag(roots) H diag(roots)`` as a product with vectors, or H itself without ``roots`` (n,)."""
        return self.times if roots is None else lambda v: roots * self.times(roots * v)


def lanczos_iteration(
    times: MatrixProduct, start: Float[Tensor, " n"], iterations: int, rtol: float, top: bool = False
) -> Eigenvalue:
    """Compute an extreme eigenvalue of a symmetric matrix by Lanczos' iteration with full reorthogonalisation.

    Source: Golub and Van Loan, Matrix Computations, 10.1.

    Args:
        times: the product with the matrix, v ↦ M v.
        start: the first direction, (n,), not zero.
        iterations: the largest number of products with M.
        rtol: stop once ``‖M u − λ u‖ ≤ rtol |λ|``.
        top: compute the largest eigenvalue in the order of numbers, instead of the one of largest magnitude.

    Returns:
        The eigenvalue. Its ``vector`` is a tuple of a single tensor (n,).
    """
    iterations = min(iterations, len(start))
    basis = start.new_empty(iterations, len(start))
    diagonal, off_diagonal = list[float](), list[float]()
    q = start / torch.linalg.vector_norm(start)
    while True:
        basis[len(diagonal)] = q
        w = times(q)
        diagonal.append(float(w @ q))
        directions = basis[: len(diagonal)]
        for _ in range(2):
            w = w - directions.T @ (directions @ w)
        off_diagonal.append(float(torch.linalg.vector_norm(w)))
        if not math.isfinite(diagonal[-1] + off_diagonal[-1]):
            return Eigenvalue(math.nan, len(diagonal), math.nan, False)
        value, weights, size = _ritz(diagonal, off_diagonal, top)
        error = off_diagonal[-1] * abs(float(weights[-1]))
        # nothing is left of w but rounding: the directions so far span all that M makes of the start
        exhausted = off_diagonal[-1] <= 10 * torch.finfo(start.dtype).eps * size
        if exhausted or error <= rtol * abs(value) or len(diagonal) == iterations:
            residual = error / abs(value) if value else 0.0 if exhausted else math.inf
            vector = weights.to(start.dtype).to(start.device) @ directions
            return Eigenvalue(value, len(diagonal), residual, exhausted or residual <= rtol, (vector,))
        q = w / off_diagonal[-1]


def _ritz(
    diagonal: Sequence[float], off_diagonal: Sequence[float], top: bool
) -> tuple[float, Float64[Tensor, " k"], float]:
    """The extreme eigenvalue of the tridiagonal matrix (k, k), its eigenvector, and the largest magnitude."""
    off = torch.tensor(off_diagonal[:-1], dtype=torch.float64)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    sizes = values.abs()
    index = len(values) - 1 if top else int(sizes.argmax())
    return float(values[index]), vectors[:, index], float(sizes.max())


def _inverse_roots(scale: Sequence[Tensor] | None, parameters: Sequence[Tensor]) -> Float[Tensor, " n"] | None:
    """``D^-1/2`` as one vector."""
    if scale is None:
        return None
    if [tuple(s.shape) for s in scale] != [tuple(p.shape) for p in parameters]:
        raise InputError("scale must be one tensor for each parameter, of its shape")
    if not all(bool((s > 0).all()) for s in scale):
        raise InputError("scale must be positive everywhere (infinity leaves a number out); add Adam's eps to it")
    return flatten(scale).rsqrt()


def fill_missing(
    parts: Iterable[Float[Tensor, "..."] | None], like: Sequence[Float[Tensor, "..."]]
) -> list[Float[Tensor, "..."]]:
    """Replace each ``None`` by zeros of the shape in ``like``: autograd has no gradient for an unused parameter."""
    return [torch.zeros_like(p) if part is None else part for part, p in zip(parts, like, strict=True)]


def flatten(parts: Iterable[Float[Tensor, "..."]]) -> Float[Tensor, " n"]:
    """Join tensors of any shapes into one vector (n,), detached."""
    return torch.cat([t.detach().reshape(-1) for t in parts])


def unflatten(v: Float[Tensor, " n"], like: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
    """Split a vector (n,) into views of the shapes of ``like``, which have n numbers together."""
    return [part.view_as(p) for part, p in zip(torch.split(v, [p.numel() for p in like]), like, strict=True)]
