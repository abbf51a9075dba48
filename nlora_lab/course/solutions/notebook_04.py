"""The exercises of notebook 04, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlora_lab.course.exercises import Exercise, Mistake, Question, normal_matrix


def _inputs_and_factors() -> list[tuple[Any, ...]]:
    """x, then B, N, A, then their values at the start: tall, and square with N far from symmetric."""
    trials = []
    for m, n, r, seed in ((7, 5, 2, 1), (6, 6, 3, 2)):
        draw = torch.Generator().manual_seed(seed)
        shapes = ((4, n), (m, r), (r, r), (r, n), (m, r), (r, r), (r, n))
        trials.append(tuple(torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes))
    return trials


def nlora_change(x: Tensor, B: Tensor, N: Tensor, A: Tensor, B0: Tensor, N0: Tensor, A0: Tensor) -> Tensor:
    """Multiply the rows of x by the transposed factors, A first, and subtract the start."""
    change: Tensor = x @ A.T @ N.T @ B.T - x @ A0.T @ N0.T @ B0.T
    return change


class SLoRALayer(torch.nn.Module):
    """A linear layer with a frozen weight and a trained correction s·B N A."""

    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        """Start with B = 0, so that the layer computes what W computes."""
        super().__init__()
        m, n = W.shape
        self.W, self.s = W, alpha / r  # a tensor that is not a Parameter is frozen
        self.B = torch.nn.Parameter(torch.zeros(m, r))
        self.N = torch.nn.Parameter(torch.empty(r, r))
        self.A = torch.nn.Parameter(torch.empty(r, n))
        for factor in (self.N, self.A):
            torch.nn.init.kaiming_uniform_(factor, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, one row per row of x."""
        return x @ self.W.T + self.s * (x @ self.A.T @ self.N.T @ self.B.T)


class _Unscaled(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        self.s = 1.0


class _ScaledByAlpha(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        self.s = alpha


class _TrainsW(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        self.W = torch.nn.Parameter(W.clone())


class _ZeroN(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        self.N.data.zero_()


class _RandomB(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        torch.nn.init.kaiming_uniform_(self.B, a=5**0.5)


class _FrozenN(SLoRALayer):
    def __init__(self, W: Tensor, r: int, alpha: float) -> None:
        super().__init__(W, r, alpha)
        N = self.N.data
        del self.N
        self.N = N  # type: ignore[assignment]  # that is the mistake


class _NotTransposed(SLoRALayer):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W.T + self.s * (x @ self.A.T @ self.N @ self.B.T)


class _WithoutW(SLoRALayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x @ self.W.T


def _weights_and_scales() -> list[tuple[Any, ...]]:
    return [(normal_matrix(7, 5, 8).float(), 2, 6.0), (normal_matrix(6, 6, 9).float(), 3, 1.5)]


def _facts(layer_class: Any, W: Tensor, r: int, alpha: float) -> Any:
    """What has to be true of a layer: its parameters, its start, and its output when the factors have moved."""
    m, n = W.shape
    x, base = normal_matrix(4, n, 10).float(), W.clone()
    with torch.random.fork_rng(devices=[]):
        layer = layer_class(W, r, alpha)
        start = layer if layer is ... else layer(x)
    if start is ...:
        return ...
    facts = [f"trains {name} of shape {tuple(p.shape)}" for name, p in layer.named_parameters() if p.requires_grad]
    facts += [f"{name} is zero at the start: {not bool(getattr(layer, name).any())}" for name in "BNA"]
    facts.append(f"starts with the outputs x Wᵀ: {torch.allclose(start, x @ base.T, atol=1e-5)}")
    B, N, A = (normal_matrix(*shape, seed).float() for seed, shape in enumerate(((m, r), (r, r), (r, n)), 11))
    for name, value in (("B", B), ("N", N), ("A", A)):
        getattr(layer, name).data.copy_(value)
    change, product = layer(x).detach() - x @ base.T, x @ (B @ N @ A).T
    scale = float((change * product).sum() / product.square().sum())
    same = torch.allclose(change, scale * product, atol=1e-3)
    return [*facts, f"adds x (B N A)ᵀ times {scale:.2f}" if same else "adds something other than s x (B N A)ᵀ"]


def repaired(x: Tensor, y: Tensor, w: Tensor, eta: float, steps: int) -> Tensor:
    """Train w by gradient descent, each step with the gradient of this step alone."""
    w = w.clone().requires_grad_()
    for _ in range(steps):
        (x @ w - y).square().mean().backward()
        assert w.grad is not None
        with torch.no_grad():
            w -= eta * w.grad
        w.grad = None  # backward() adds to what is there
    return w.detach()


def _descend(
    x: Tensor, y: Tensor, w: Tensor, eta: float, steps: int, *, keep: float = 0.0, total: bool = False
) -> Tensor:
    """Gradient descent with a share of the old gradient, or with the sum over the rows in the place of the mean."""
    w, memory = w.clone(), torch.zeros_like(w)
    for _ in range(steps):
        error = x @ w - y
        memory = keep * memory + 2 * x.T @ error / (1 if total else error.numel())
        w = w - eta * memory
    return w


def _regressions() -> list[tuple[Any, ...]]:
    """Rows, targets, a start, a rate and a number of steps: three inputs with one output, then two inputs with two."""
    return [
        (normal_matrix(12, 3, 21), normal_matrix(12, 1, 22), normal_matrix(3, 1, 23), 0.1, 6),
        (normal_matrix(9, 2, 24), normal_matrix(9, 2, 25), normal_matrix(2, 2, 26), 0.2, 4),
    ]


def new_core(N: Tensor, P: Tensor, Z: Tensor) -> Tensor:
    """Undo P on the left and Z on the right: (B P)(P⁻¹ N Z⁻¹)(Z A) = B N A."""
    core: Tensor = torch.linalg.inv(P) @ N @ torch.linalg.inv(Z)
    return core


def _cores() -> list[tuple[Any, ...]]:
    return [tuple(normal_matrix(r, r, seed + i) for i in range(3)) for r, seed in ((3, 31), (4, 41))]


def step_of_product(B: Tensor, N: Tensor, A: Tensor, G: Tensor, eta: float) -> float:
    """Move each factor against the sign of its gradient, and measure how far the product went."""
    dB, dN, dA = (-eta * torch.sign(g) for g in (G @ A.T @ N.T, B.T @ G @ A.T, N.T @ B.T @ G))
    return float(torch.linalg.norm((B + dB) @ (N + dN) @ (A + dA) - B @ N @ A))


def _moved(B: Tensor, N: Tensor, A: Tensor, dB: Any, dN: Any, dA: Any) -> float:
    return float(torch.linalg.norm((B + dB) @ (N + dN) @ (A + dA) - B @ N @ A))


def _gradients(B: Tensor, N: Tensor, A: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return G @ A.T @ N.T, B.T @ G @ A.T, N.T @ B.T @ G


def _products() -> list[tuple[Any, ...]]:
    """Factors, the gradient of the loss in W, and a rate: square factors, so that a wrong order has a shape too."""
    return [(*(normal_matrix(3, 3, seed + i) for i in range(4)), eta) for seed, eta in ((51, 0.05), (61, 0.2))]


def _numbers_per_matrix(value: float) -> str:
    return f"{value:,.0f} numbers would be {value / 224:,.6g} in each of the 32·7 = 224 matrices"


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "4.1",
        "what N costs",
        "LLaMA-2-7B has 32 layers with 7 weight matrices each. How many numbers do all the N of SLoRA have\n"
        "together at rank 64? One whole number (about 1 line).",
        32 * 7 * 64**2,
        "N costs the same in every matrix, because its size does not depend on m and n.",
        (
            Mistake(32 * 64**2, "that is one matrix per layer, but seven are adapted."),
            Mistake(7 * 64**2, "that is one layer, but there are 32."),
            Mistake(32 * 7 * 64, "N is a matrix. It has r × r numbers, not r."),
            Mistake(32 * 7 * 128**2, "that is rank 128, the rank of the paper. The question is about rank 64."),
            Mistake(32 * 7 * 2 * 4096 * 64, "that is A and B of 224 matrices of 4096 × 4096. Count only N."),
        ),
        gives=_numbers_per_matrix,
        reason="32 · 7 · 64² = 917,504: a quarter of the paper's 3,670,016 at rank 128.",
        level="warm-up",
    ),
    Exercise(
        "4.2",
        "NLoRA's change of the output",
        "Write nlora_change(x, B, N, A, B0, N0, A0): what NLoRA adds to the output of its layer, (B N A − B0 N0 A0)\n"
        "applied to each row of x (about 1 line). x is (tokens, n), B (m, r), N (r, r), A (r, n).\n"
        "Return a (tokens, m) tensor.",
        nlora_change,
        "At step 0 the two terms are the same numbers, so the model is the one you started from.",
        (
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ A.T @ N.T @ B.T,
                "the start is not subtracted. Without − B0 N0 A0 the model changes before it has learned anything."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ A0.T @ N0.T @ B0.T - x @ A.T @ N.T @ B.T,
                "the sign is wrong. The change is what is there now MINUS the start."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ A.T @ N.T @ B.T + x @ A0.T @ N0.T @ B0.T,
                "the start is added a second time. Subtract it."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ A.T @ N @ B.T - x @ A0.T @ N0 @ B0.T,
                "N is not transposed. Rows of x stand on the left, so transpose every factor: x Aᵀ Nᵀ Bᵀ."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ (B @ N @ A) - x @ (B0 @ N0 @ A0),
                "the product is not transposed: y = W x for a column is y = x Wᵀ for rows."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ (A - A0).T @ (N - N0).T @ (B - B0).T,
                "a product of differences is not the difference of the products. First multiply, then subtract."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ B.T @ N.T @ A.T - x @ B0.T @ N0.T @ A0.T,
                "the factors are swapped. x meets A first, then N, then B: x Aᵀ Nᵀ Bᵀ."),
            Mistake(lambda x, B, N, A, B0, N0, A0: x @ B @ N @ A - x @ B0 @ N0 @ A0,
                "x is on the wrong side. y = W x for a column is y = x Wᵀ for rows, so transpose and turn the order: "
                "x Aᵀ Nᵀ Bᵀ."),
        ),
        inputs=_inputs_and_factors,
        level="understand",
    ),
    Exercise(
        "4.3",
        "how the released start scales",
        "Every weight of a layer is tripled. By which factor does the released start grow, the product\n"
        "W[:, :r] W[:r, :r] W[:r, :]? One number (about 1 line).",
        27,
        "It is cubic in W. An approximation of 3 W would have to be three times that of W.",
        (
            Mistake(3,
                "that is how W grows. Its Nyström approximation, with the pseudo-inverse as core, grows the same way."),
            Mistake(9, "three factors hold W, not two."),
            Mistake(1 / 3, "that would be the pseudo-inverse alone. The released core is the block itself."),
            Mistake(6, "factors multiply: 3·3·3, not 3 + 3."),
        ),
        reason="Each of the three factors is tripled: 3³ = 27.",
        level="warm-up",
    ),
    Exercise(
        "4.4",
        "SLoRA as a module",
        "Write the class SLoRALayer(torch.nn.Module) without looking above. SLoRALayer(W, r, alpha) keeps the weight\n"
        "W, an (m, n) tensor, frozen. It has the parameters B (m, r), N (r, r) and A (r, n) under these names. B\n"
        "starts at zero, N and A at random. layer(x) returns x Wᵀ + s x (B N A)ᵀ with s = alpha / r, for x of shape\n"
        "(tokens, n) (about 12 lines). The check looks at the parameters, at the start, and at the output for moved "
        "factors.",
        SLoRALayer,
        "This is all that an adapter is. The library's own layer adds dropout, merging and saving, not another idea.",
        (
            Mistake(_Unscaled, "the scale is missing. Multiply the correction by s = alpha / r."),
            Mistake(_ScaledByAlpha, "the scale is alpha. It is alpha / r."),
            Mistake(_TrainsW,
                "W is a Parameter, so the optimiser would train it. Keep it as a tensor, or set requires_grad=False."),
            Mistake(_ZeroN,
                "N is zero and B is zero, so no factor ever gets a gradient. Only B starts at zero. Draw N at random."),
            Mistake(_RandomB,
                "B is not zero at the start, so the model changes before it has learned anything."),
            Mistake(_FrozenN,
                "N is not trained. Make it a torch.nn.Parameter, or the optimiser never sees it."),
            Mistake(_NotTransposed,
                "N is not transposed. Rows of x stand on the left, so transpose every factor: x Aᵀ Nᵀ Bᵀ."),
            Mistake(_WithoutW, "the output of the frozen layer, x Wᵀ, is missing."),
        ),
        inputs=_weights_and_scales,
        level="build",
        probe=_facts,
    ),
    Exercise(
        "4.5",
        "a planted bug",
        "The loop above fits y ≈ x w by gradient descent on the mean squared error. It has one bug. Write\n"
        "repaired(x, y, w, eta, steps): the same loop without it (about 7 lines). It returns the w after all steps,\n"
        "and leaves the w that it was given as it is.",
        repaired,
        "backward() adds to the gradient. That is wanted when a batch goes through in parts, and a bug otherwise.",
        (
            Mistake(lambda x, y, w, eta, steps: _descend(x, y, w, eta, steps, keep=1.0),
                "the gradients of all earlier steps are still added. Delete w.grad after each step."),
            Mistake(lambda x, y, w, eta, steps: w.clone(),
                "w has not moved. Is the gradient deleted before it is used?"),
            Mistake(lambda x, y, w, eta, steps: _descend(x, y, w, eta, 1),
                "that is one step only. Repeat the whole turn of the loop."),
            Mistake(lambda x, y, w, eta, steps: _descend(x, y, w, -eta, steps),
                "w goes up the gradient. Subtract eta times the gradient."),
            Mistake(lambda x, y, w, eta, steps: _descend(x, y, w, eta, steps, total=True),
                "that is the sum of the squared errors. The loss of the loop is their mean."),
            Mistake(lambda x, y, w, eta, steps: _descend(x, y, w, eta, steps - 1),
                "one step is missing."),
        ),
        inputs=_regressions,
        level="understand",
    ),
    Exercise(
        "4.6",
        "the same product, other factors",
        "Replace B by B P and A by Z A, with invertible r × r matrices P and Z. Write new_core(N, P, Z): the core\n"
        "that leaves the product B N A as it was (about 1 line). Return an (r, r) tensor.",
        new_core,
        "So one product has infinitely many factors. The loss does not see the difference. The optimiser does.",
        (
            Mistake(lambda N, P, Z: P @ N @ Z,
                "P and Z then act twice. The core has to undo them: it needs their inverses."),
            Mistake(lambda N, P, Z: torch.linalg.inv(Z) @ N @ torch.linalg.inv(P),
                "the sides are swapped. P stands between B and N, and Z between N and A."),
            Mistake(lambda N, P, Z: P.T @ N @ Z.T,
                "a transpose is an inverse only for orthogonal matrices."),
            Mistake(lambda N, P, Z: torch.linalg.inv(P) @ N @ Z,
                "P is undone, but Z acts twice."),
            Mistake(lambda N, P, Z: P @ N @ torch.linalg.inv(Z),
                "Z is undone, but P acts twice."),
            Mistake(lambda N, P, Z: torch.linalg.inv(Z @ P) @ N,
                "matrices do not commute. One inverse stands left of N, and the other one right of it."),
        ),
        inputs=_cores,
        level="understand",
    ),
    Exercise(
        "4.7",
        "the first step of B N A",
        "G is the gradient of the loss in the product W' = B N A, an (m, n) tensor. Write\n"
        "step_of_product(B, N, A, G, eta): how far the first step of Adam moves the product, in the Frobenius norm\n"
        "(about 3 lines). All three factors move at once. Adam's first step moves each number by eta against the sign\n"
        "of its gradient. First derive the gradients of B, N and A from G.",
        step_of_product,
        "A large N₀ multiplies the moves of B and A. That is all behind the long bar of NLoRA above.",
        (
            Mistake(lambda B, N, A, G, eta: _moved(B, N, A, -eta * (G @ A.T @ N.T).sign(), 0, 0),
                "only B moves. All three factors are trained."),
            Mistake(lambda B, N, A, G, eta: _moved(B, N, A, *(-eta * g for g in _gradients(B, N, A, G))),
                "that is a step of gradient descent. Adam's first step takes only the sign of each gradient."),
            Mistake(lambda B, N, A, G, eta: _moved(B, N, A, *(eta * g.sign() for g in _gradients(B, N, A, G))),
                "the factors go up the gradient. Adam goes against it."),
            Mistake(lambda B, N, A, G, eta: eta * float(torch.linalg.norm(G.sign())),
                "that is a step in W itself, which full fine-tuning makes. Here the factors move."),
            Mistake(lambda B, N, A, G, eta: _moved(
                    B, N, A, -eta * (G @ A @ N).sign(), -eta * (B @ G @ A).sign(), -eta * (N @ B @ G).sign()),
                "the other factors are not transposed in the gradients: dB = G Aᵀ Nᵀ, dN = Bᵀ G Aᵀ, dA = Nᵀ Bᵀ G."),
            Mistake(lambda B, N, A, G, eta: float(torch.linalg.norm(
                    eta * ((G @ A.T @ N.T).sign() @ N @ A + B @ (B.T @ G @ A.T).sign() @ A
                           + B @ N @ (N.T @ B.T @ G).sign()))),
                "that is the first order in eta. Move all three factors, multiply them, and subtract the old product."),
        ),
        inputs=_products,
        level="build",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "4.Q1",
        "Everything but N: the data, the steps, the seeds and the number of rates that were tried. Each method\n"
        "needs a rate of its own, chosen on validation data. Otherwise the comparison is one of step sizes,\n"
        "because SLoRA starts as LoRA with A' = N A, which is smaller than A.",
    ),
    Question(
        "4.Q2",
        "Adam moves every number by about the rate. What W feels is that move times the other factors. NLoRA's N₀\n"
        "is very large, so a move of B is multiplied by N₀ A₀. In the balanced form B₀ and A₀ share the size\n"
        "evenly and N₀ is the identity, so no factor is very large.",
    ),
    Question(
        "4.Q3",
        "r² numbers per adapted matrix, whatever its size: 16² = 256 times the number of matrices. LLaMA-2-7B has\n"
        "224 of them, so 57,344.",
    ),
)
