"""What the tests of the adapters share: models, adapters far enough from their start, and tolerances."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from support import ARCHITECTURES

from nlora_lab.adapters import NLoraLayer, inttune, lora_xs, nlora, nlora_released, slora
from nlora_lab.methods import METHODS, attach

VARIANTS = [(name, init) for name, m in METHODS.items() for init in (m.inits or (None,))]
ADAPTERS = [(name, init) for name, init in VARIANTS if METHODS[name].build is not None]
OURS = [(name, init) for name, init in ADAPTERS if METHODS[name].build.func.__name__ != "_lora"]
PRESETS = {"slora": slora, "nlora": nlora, "released": nlora_released, "inttune": inttune, "lora-xs": lora_xs}

# What PEFT itself cannot do; a test asserts that it still cannot.
BROKEN_IN_PEFT = {("olora", "gpt2"): "OLoRA's factors are not transposed for Conv1D"}


def variant_id(variant: tuple[str, str | None]) -> str:
    return "-".join(part for part in variant if part)


def base_model(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same tiny random model every time."""
    torch.manual_seed(7)
    return ARCHITECTURES[architecture]().to(dtype).eval()


def adapted(architecture: str, variant: tuple[str, str | None], seed: int = 1, base: Any = None, **options: Any) -> Any:
    """The tiny model with a method attached, rank 4, under a seed."""
    model = base_model(architecture) if base is None else base
    name, init = variant
    torch.manual_seed(seed)
    options = {"task_type": None, **options}
    if name == "full":
        return attach(model, name)
    with warnings.catch_warnings():  # PEFT says about every GPT-2 that it transposes
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return attach(model, name, 4, init=init, **options).eval()


def layers(model: Any) -> list[NLoraLayer]:
    found = [m for m in model.modules() if isinstance(m, NLoraLayer)]
    assert len(found) >= 8
    return found


@torch.no_grad()
def move(model: Any, seed: int = 11) -> None:
    """Move what trains far enough that a wrong merge or an empty file would show, and no further.

    An update that dwarfs W makes a network chaotic, and then rounding shows instead.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = [m for m in model.modules() if isinstance(m, NLoraLayer)]
    for layer in ours:
        if layer.active_adapters[0] in layer.nlora_A:
            _move_layer(layer, generator)
    if not ours:
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * (float(p.std()) or 0.5) * torch.randn(p.shape, generator=generator)


def _move_layer(layer: NLoraLayer, generator: torch.Generator) -> None:
    A, N, B = layer.factors(layer.active_adapters[0])
    size = torch.linalg.matrix_norm(layer.base_matrix().float(), 2)
    if not A.requires_grad:  # N alone
        step = torch.randn(N.shape, generator=generator)
        N += step * float(0.2 * size / torch.linalg.matrix_norm(B @ step @ A, 2))
        return
    product = torch.stack([torch.linalg.matrix_norm(f, 2) for f in (A, N, B)]).prod()
    by = 0.3 / float((product / size).clamp(min=1))
    for f in (A, N, B):
        f += by * (float(f.std()) or 0.5) * torch.randn(f.shape, generator=generator)


def tolerance(model: Any) -> float:
    """1e-5 · max(1, the largest layer's ‖B0 N0 A0‖ / ‖W‖), the unit in which float32 rounds a large start."""
    worst = 1.0
    for layer in (m for m in model.modules() if isinstance(m, NLoraLayer)):
        if "default" in layer.nlora_N0:
            worst = max(worst, float(layer.start_weight("default").norm() / layer.base_matrix().norm()))
    return 1e-5 * worst


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@cache
def _base_logits(architecture: str, tokens: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return logits(base_model(architecture), torch.tensor(tokens).reshape(shape))


def base_logits(architecture: str, ids: torch.Tensor) -> torch.Tensor:
    """The untouched model's, computed once a session."""
    return _base_logits(architecture, tuple(ids.flatten().tolist()), tuple(ids.shape))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())
