r"""Low-rank approximation of a matrix: the Nyström (cross) family, its rivals, and their errors.

Write ``W`` (m, n) for the matrix, and ``W_IJ`` for its ``r × r`` block on chosen rows ``I`` and columns ``J``. The
cross approximation is Nyström's idea for a rectangular matrix:

.. math:: W \approx C\, N\, R, \qquad C = W[:, J],\; R = W[I, :],\; N = W_{IJ}^{+}.

It is exact if and only if ``rank(W_IJ) = rank(W)``. The *optimal* core for the same rows and columns is
``N = C⁺ W R⁺`` (Stewart 1999). The code that the NLoRA authors released uses ``N = W_IJ`` itself ("block"). That is
not an approximation of ``W``, because it scales as ``W`` cubed.

Every function takes one matrix or a batch of matrices, of any floating dtype, on any device. Batch dimensions come
first. The arithmetic is float32 or better, and float64 for small ``r × r`` systems.
"""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
