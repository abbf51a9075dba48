"""Lanczos' iteration: eigenvalues against dense Hessians."""

from __future__ import annotations

import math

import pytest
import torch
from factories import tiny_llama
from torch import nn

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.lanczos import Hessian, flatten, largest_eigenvalue, unflatten

SHAPES = [(3, 4), (5,), (1, 2)]
SIZE = 19


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)).Q
    return Q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def quadratic(H, shapes=SHAPES, dtype=torch.float64):
    """A loss with the Hessian ``H``, and its parameters away from the minimum."""
    parameters = [torch.randn(s, generator=seeded(i), dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]
    H = H.to(dtype)

    def loss():
        x = torch.cat([p.reshape(-1) for p in parameters])
        return x @ H @ x / 2 + x.sum()

    return loss, parameters


def network(dtype=torch.float64):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    x = torch.randn(20, 4, generator=seeded(1), dtype=dtype)
    y = torch.randint(0, 3, (20,), generator=seeded(2))
    return (lambda: nn.functional.cross_entropy(net(x), y)), list(net.parameters()), net, x, y


def dense_of(net, x, y):
    """The dense Hessian, by torch's own function."""
    names, tensors = zip(*((n, p.detach()) for n, p in net.named_parameters()), strict=True)

    def loss(row):
        parts = dict(zip(names, unflatten(row, tensors), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    return torch.autograd.functional.hessian(loss, flatten(tensors))


def largest_by_magnitude(H):
    values = torch.linalg.eigvalsh(H)
    return float(values[values.abs().argmax()])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_by_magnitude_comes_with_its_sign_and_vector(sign):
    H = symmetric([sign * 7.0, *torch.linspace(-4, 4, SIZE - 1).tolist()])
    result = largest_eigenvalue(*quadratic(H), rtol=1e-8, generator=seeded())
    assert result.value == pytest.approx(sign * 7, rel=1e-12)
    assert result.converged
    assert result.residual <= 1e-8
    assert [tuple(part.shape) for part in result.vector] == SHAPES
    u = flatten(result.vector)
    assert float(u.norm()) == pytest.approx(1)
    assert float((H @ u - result.value * u).norm()) < 1e-7


def test_the_top_is_the_most_upward_eigenvalue():
    H = symmetric([-9.0, *torch.linspace(-4, 3, SIZE - 1).tolist()])
    assert largest_eigenvalue(*quadratic(H), rtol=1e-6, top=True).value == pytest.approx(3, rel=1e-9)
    below = symmetric(torch.linspace(-9, -2, SIZE).tolist())
    assert largest_eigenvalue(*quadratic(below), rtol=1e-6, top=True).value == pytest.approx(-2, rel=1e-9)


def test_a_pair_of_opposite_signs_which_stalls_power_iteration():
    H = symmetric([5.0, -5.0, *torch.linspace(-1, 1, SIZE - 2).tolist()])
    result = largest_eigenvalue(*quadratic(H), rtol=1e-6)
    assert abs(result.value) == pytest.approx(5, rel=1e-9)
    assert result.converged


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_network_against_its_dense_hessian(dtype, close):
    loss, parameters, net, x, y = network(dtype)
    H = dense_of(net, x, y)
    for top in (False, True):
        result = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-5, top=top)
        expected = float(torch.linalg.eigvalsh(H)[-1]) if top else largest_by_magnitude(H)
        assert result.value == pytest.approx(expected, rel=close)
    hessian = Hessian(loss, parameters)
    columns = torch.stack([hessian.times(e) for e in torch.eye(len(H), dtype=dtype)])
    assert torch.allclose(columns, H, atol=100 * torch.finfo(dtype).eps)
    assert hessian.loss == pytest.approx(loss().item())


def test_a_scale_divides_the_dense_hessian_on_both_sides():
    loss, parameters, net, x, y = network()
    H = dense_of(net, x, y)
    scale = [torch.rand(p.shape, generator=seeded(5), dtype=p.dtype) + 0.01 for p in parameters]
    D = flatten(scale)
    result = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-8, scale=scale)
    expected = H / (D[:, None] * D[None, :]).sqrt()
    assert result.value == pytest.approx(largest_by_magnitude(expected), rel=1e-9)
    u = flatten(result.vector)
    assert float((expected @ u - result.value * u).norm()) < 1e-6 * abs(result.value)
    # parameters with an infinite scale are left out
    scale[0].fill_(math.inf)
    finite = slice(parameters[0].numel(), None)
    result = largest_eigenvalue(loss, parameters, iterations=60, rtol=1e-8, scale=scale)
    assert result.value == pytest.approx(largest_by_magnitude(expected[finite, finite]), rel=1e-9)
    assert not result.vector[0].abs().max() > 1e-8


def test_a_hessian_of_zeros():
    p, q, unused = (torch.randn(3, generator=seeded(i)).requires_grad_() for i in range(3))
    for loss in (lambda: p.sum() + 2 * q.sum(), lambda: (p * 3).sum() + 0 * (q * q).sum()):
        result = largest_eigenvalue(loss, [p, q, unused])
        assert (result.value, result.residual, result.converged) == (0, 0, True)
        assert result.iterations == 1


def test_the_smallest_problems_end_when_the_space_is_exhausted():
    p = torch.tensor([2.0], requires_grad=True)
    result = largest_eigenvalue(lambda: (p**3).sum(), [p], rtol=0)
    assert (result.value, result.iterations, result.converged) == (pytest.approx(12), 1, True)
    q = torch.randn(50, generator=seeded(), requires_grad=True)
    result = largest_eigenvalue(lambda: -q.square().sum(), [q], rtol=0)
    assert (result.value, result.iterations, result.converged) == (pytest.approx(-2), 1, True)


def test_too_few_iterations_do_not_converge_and_the_residual_is_the_true_one():
    H = symmetric(torch.linspace(1, 2, SIZE).tolist())
    for iterations in (1, 2, 4):
        result = largest_eigenvalue(*quadratic(H), iterations=iterations, rtol=1e-9, generator=seeded(4))
        u = flatten(result.vector)
        assert result.residual == pytest.approx(float((H @ u - result.value * u).norm()) / result.value, rel=1e-8)
        assert not result.converged
        assert result.iterations == iterations
    assert largest_eigenvalue(*quadratic(H), iterations=500, rtol=0).iterations <= SIZE


def test_the_loss_is_computed_once_and_the_generator_decides():
    loss, parameters = quadratic(symmetric(torch.linspace(-1, 2, SIZE).tolist()))
    calls = []

    def counted():
        calls.append(1)
        return loss()

    first, second, other = (
        largest_eigenvalue(counted, parameters, iterations=3, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert len(calls) == 3
    assert first == second != other


def test_attention_has_a_second_derivative_here():
    torch.manual_seed(0)
    model = tiny_llama(hidden_size=16, num_hidden_layers=1).eval()
    assert model.config._attn_implementation == "sdpa"
    ids = torch.randint(0, 97, (2, 9), generator=seeded(1))
    model.requires_grad_(False)
    p = model.model.layers[0].input_layernorm.weight
    p.requires_grad_(True)
    result = largest_eigenvalue(lambda: model(input_ids=ids, labels=ids).loss, [p], rtol=1e-4)
    step, columns = 1e-2, []
    for e in torch.eye(len(p)):  # differences of gradients
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(e, alpha=sign * step)
            slopes.append(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, [p])[0])
            with torch.no_grad():
                p.sub_(e, alpha=sign * step)
        columns.append((slopes[0] - slopes[1]) / (2 * step))
    H = torch.stack(columns)
    assert result.value == pytest.approx(largest_by_magnitude((H + H.T) / 2), rel=0.01)


X = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"rtol": -1}, "rtol=-1"),
        ({"rtol": math.nan}, "rtol=nan"),
        ({"rtol": True}, "rtol=True"),
        ({"generator": 3}, "generator=3"),
        ({"scale": [torch.ones(2)]}, "of its shape"),
        ({"scale": []}, "of its shape"),
        ({"scale": [torch.zeros(3)]}, "positive"),
        ({"scale": [torch.full((3,), math.nan)]}, "positive"),
        ({"parameters": []}, "nothing to vary"),
        ({"parameters": [torch.ones(3)]}, "requires_grad"),
        ({"loss": lambda: X * 2}, "one number"),
        ({"loss": lambda: torch.tensor(1.0)}, "depends on the parameters"),
        ({"loss": lambda: (X * math.inf).sum()}, "not finite"),
        ({"loss": lambda: (X - 1).abs().sqrt().sum()}, "not finite"),
    ],
)
def test_bad_input_of_an_eigenvalue_is_named(options, message):
    with pytest.raises(InputError, match=message):
        largest_eigenvalue(**{"loss": lambda: X.square().sum(), "parameters": [X], **options})


def test_a_second_derivative_that_is_not_finite_gives_nan_and_raises_nothing():
    p = torch.zeros(2, requires_grad=True)
    result = largest_eigenvalue(lambda: (p.abs() ** 1.5).sum(), [p])
    assert math.isnan(result.value)
    assert not result.converged
