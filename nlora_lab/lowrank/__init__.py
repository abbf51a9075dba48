r"""Low-rank approximation of a weight matrix: the Nyström (cross) family, its rivals, and its error.

Write ``W`` (m, n) with the ``r × r`` block ``A_r`` on chosen rows ``I`` and columns ``J``. The cross
approximation, Nyström's idea for a rectangular matrix, is

.. math:: W \approx C\, U\, R, \qquad C = W[:, J],\; R = W[I, :],\; U = A_r^{+},

exact if and only if ``rank(A_r) = rank(W)``. The *optimal* core for the same rows and columns is
``U = C⁺ W R⁺`` (Stewart 1999). The NLoRA authors' released code uses ``U = A_r`` itself ("block"),
which is not an approximation of ``W``: it scales as ``W`` cubed.

Everything takes one matrix or a batch of them, any floating dtype, on any device; it is computed in
float32 or better, small ``r × r`` systems in float64. Batches have their dimensions in front.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
