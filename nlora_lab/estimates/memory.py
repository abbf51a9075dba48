"""What a run needs in memory and arithmetic, by formula: from a config and an architecture's shapes alone.

The formulas are those of a block as Llama's, BERT's and GPT-2's (norm, attention, norm, two- or three-matrix MLP),
derived in :func:`token_bytes` and :func:`step_flops`; a test compares them with what autograd really keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.methods.table import get_method
from nlora_lab.models.batch_limits import ANSWERED_ROWS, read_at_once, tokens_at_once
from nlora_lab.models.layers import layer_shape, target_layers
from nlora_lab.models.loading import check_reachable, meta_body
from nlora_lab.models.names import EMBEDDED, check_model

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig

FLOAT, HALF = 4, 2  # bytes of a number in float32 and in bfloat16
SLACK = 0.25  # of the memory in use, what a CPU run was found to hold beyond it: benchmarks/estimates.py


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model that decide memory and time; ``linears``: name, out, in of every linear layer but the head.

    ``attention`` is the width of all query heads, ``cached`` that of all key heads; ``inner`` the MLP's.
    ``mlp_kept``: how many tensors of width ``inner`` the activation function keeps for the backward pass.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    attention: int
    cached: int
    inner: int
    mlp_kept: int
    vocabulary: int
    tied: bool
    body: int
    positions: int | None
    dropout: bool
    sdpa: bool
    rms: bool
    linears: tuple[tuple[str, int, int], ...]

    @property
    def narrowest(self) -> int:
        """The smaller side of the narrowest linear layer: no rank is above it."""
        return min(min(m, n) for _, m, n in self.linears)

    def numbers(self, head: int = 0) -> int:
        """All of the model's numbers: with the output head of a language model, or ``head`` classes."""
        return self.body + (head * self.hidden if head else 0 if self.tied else self.vocabulary * self.hidden)

    def multiplied(self, head: int = 0) -> int:
        """The numbers that every token is multiplied by: the linear layers' and the head's, tied or not."""
        return sum(m * n for _, m, n in self.linears) + (head or self.vocabulary) * self.hidden


def architecture(model: str, revision: str | None = None) -> Architecture:
    """The architecture of "embedded", a folder or a hub id, from its config.json alone; kept once read.

    Raises :class:`ModelError` where there is no such config, it is out of reach, or its sizes cannot be told.
    """
    source = check_model(model)
    if isinstance(source, str):
        check_reachable(source)  # the hub's own client would try for a minute
    return _read(model, revision)


@lru_cache(maxsize=64)
def _read(model: str, revision: str | None) -> Architecture:
    if revision is None:
        return sizes(meta_body(model))
    from transformers import AutoConfig

    try:
        place = shipped_folder("data") / EMBEDDED if model == EMBEDDED else model
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        raise ModelError(f"model={model!r} has no config at revision={revision!r}; check both") from error
    return sizes(meta_body(config))


def sizes(body: Any) -> Architecture:
    """The sizes of a model without its head, such as :func:`nlora_lab.models.layers.meta_body` makes."""
    config = body.config.get_text_config()

    def of(*names: str, otherwise: Any = None) -> Any:
        return next((v for name in names if (v := getattr(config, name, None)) is not None), otherwise)

    hidden, layers, heads = of("hidden_size"), of("num_hidden_layers"), of("num_attention_heads")
    if not all(isinstance(size, int) and size > 0 for size in (hidden, layers, heads)):
        raise ModelError(f"the config of a {config.model_type} names no hidden_size, layers or heads to estimate from")
    width = of("head_dim", otherwise=hidden // heads)
    linears = tuple((name, *layer_shape(layer)) for name, layer in target_layers(body).items())
    gated = any(name.rsplit(".", 1)[-1] in ("gate_proj", "w1", "gate_up_proj", "wi_0") for name, _, _ in linears)
    composed = of("hidden_act", "activation_function") in ("gelu_new", "gelu_fast", "quick_gelu")
    return Architecture(
        kind=config.model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        attention=heads * width,
        cached=of("num_key_value_heads", otherwise=heads) * width,
        inner=of("intermediate_size", "ffn_dim", "n_inner", otherwise=4 * hidden),
        mlp_kept=3 if gated else 4 if composed else 1,
        vocabulary=config.vocab_size,
        tied=bool(of("tie_word_embeddings", otherwise=True)),
        body=sum(p.numel() for p in body.parameters()),
        positions=of("max_position_embeddings"),
        dropout=bool(of("hidden_dropout_prob", "resid_pdrop", "dropout", otherwise=0.0)),
        sdpa=bool(getattr(body, "_supports_sdpa", False)),
        rms=of("rms_norm_eps") is not None,
        linears=linears,
    )


@dataclass(frozen=True)
class Adapter:
    """What a method puts on an architecture: numbers, and what its products keep for the backward pass.

    ``trained`` and ``frozen`` are numbers in float32 (frozen: a start or factors that do not train). ``core_alone``:
    the input of a layer is not kept, because only N trains. ``kept_a_layer``: numbers of its inner results a token.
    ``stacked``: numbers that are copied in each forward pass. ``layers``: name, out, in of those it sits on.
    """

    trained: int
    frozen: int
    stacked: int
    kept_a_layer: int
    core_alone: bool
    dora: bool
    own: bool
    layers: tuple[tuple[str, int, int], ...]


def adapter(arch: Architecture, cfg: RunConfig, head: int = 0) -> Adapter:
    """What ``cfg.method`` at ``cfg.rank`` adds. Raises :class:`InputError` for a rank above a layer's smaller side."""
    entry, r = get_method(cfg.method), cfg.rank
    if entry.build is None:
        return Adapter(arch.numbers(head), 0, 0, 0, False, False, True, arch.linears)
    layers = _targets(arch, cfg.target_modules)
    name, m, n = min(layers, key=lambda layer: min(layer[1:]))
    if r > min(m, n):
        raise InputError(f"rank={r} is above {min(m, n)}, the smaller side of {name}; choose a smaller rank")
    peft = entry.build(r, cfg.alpha, cfg.init, target_modules="all-linear")
    residual, core_alone = getattr(peft, "residual", False), getattr(peft, "train", None) == "N"
    trained = sum(entry.cost(m, n, r) for _, m, n in layers)
    factors = sum(r * (m + n) + r * r for _, m, n in layers)
    cores = len(layers) * r * r
    own = hasattr(peft, "residual")
    whole_start = residual and not core_alone and not peft.fold
    frozen = (factors - trained + cores * residual) if core_alone else factors if residual else 0
    # see adapters.products: with a start that is subtracted, factors of twice the rank are put together in each pass
    inner = r if core_alone or not own else 4 * r if whole_start else 2 * r
    return Adapter(
        trained=trained,
        frozen=frozen,
        stacked=2 * factors if whole_start else 0,
        kept_a_layer=inner,
        core_alone=core_alone,
        dora=bool(getattr(peft, "use_dora", False)),
        own=own,
        layers=layers,
    )


def _targets(arch: Architecture, wanted: str | None) -> tuple[tuple[str, int, int], ...]:
    """PEFT's rule for a list of names: the last parts, or the whole, of a layer's dotted name.

    The names of ``arch`` are those inside the body, and the whole name starts with the body's own.
    """
    if wanted is None:
        return arch.linears
    names = [word.strip() for word in wanted.split(",") if word.strip()]

    def meant(name: str) -> bool:
        return any(f".{name}".endswith(f".{w}") or w.endswith(f".{name}") for w in names)

    found = tuple(row for row in arch.linears if meant(row[0]))
    if not found:
        raise InputError(f"target_modules={wanted!r} matches no layer of this model; name some of its layers")
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a run, by what holds them; ``total`` is that moment's.

    weights: the model, 4 bytes a number, or 2 where ``precision="bf16"`` and it is frozen; on the CPU a second time for
        a method that writes the weights (the untouched model is kept to compare with).
    adapter: trained and frozen numbers of the adapter, 4 bytes each; full fine-tuning has none.
    gradients: 4 bytes a trained number.
    optimizer: AdamW's two averages, 8 bytes a trained number.
    activations: :func:`token_bytes` for all tokens of a smaller batch (``batch_size / accumulation``) and all layers;
        with checkpointing one layer's, and the input of each.
    logits: smaller batch × length × vocabulary × 12: log-probabilities, their gradient, and the logits' gradient,
        4 bytes each, are there together. None for a classification head.
    evaluation: the larger of the cache of keys and values while answers are generated, and three times the logits of
        the rows read at once (:mod:`nlora_lab.models.batch_limits`), by which the untrained adapter is compared with the model.
        On a card the cache is that of one prompt, for no more are answered together than there is room for.

    training: weights + adapter + optimizer + the larger of (activations + logits, and with accumulation gradients) and
        (gradients, and the embedding's once more for full fine-tuning): activations are gone by the time the last
        gradients are there.
    total: training, or weights + adapter + optimizer + evaluation where that is more.

    ``training`` and ``total`` are, on a CPU, 1.25 times that: the parts are what PyTorch allocates, and the C library's
    allocator and the matrix libraries hold more.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    evaluation: int
    training: int
    total: int


@dataclass(frozen=True)
class Setting:
    """How a run computes. ``autocast``: in bf16; ``kept``: bytes of a weight of the model; ``quadratic``: attention
    keeps all its weights; ``on_cpu``: memory is the machine's own."""

    autocast: bool
    kept: int
    quadratic: bool
    on_cpu: bool

    @property
    def width(self) -> int:
        """Bytes of most activations."""
        return HALF if self.autocast else FLOAT


@dataclass(frozen=True)
class Lengths:
    """Tokens: of the longest row (memory), of a padded row in the mean (time), of a prompt, and of an answer."""

    longest: int
    padded: int
    prompt: int
    answer: int


def memory(arch: Architecture, cfg: RunConfig, lengths: Lengths, setting: Setting, head: int = 0) -> Memory:
    """The bytes of a run whose longest row has ``lengths.longest`` tokens."""
    added, T = adapter(arch, cfg, head), lengths.longest
    entry = get_method(cfg.method)
    full = entry.build is None
    copies = 2 if setting.on_cpu and (full or entry.writes_base) else 1
    weights = copies * setting.kept * arch.numbers(head)
    tokens = cfg.batch_size // cfg.accumulation * T
    activations = _activations(arch, cfg, added, tokens, T, setting)
    logits = 0 if head else 3 * FLOAT * tokens * arch.vocabulary
    gradients, optimizer = FLOAT * added.trained, 2 * FLOAT * added.trained
    own = 0 if full else FLOAT * (added.trained + added.frozen)
    evaluation = _evaluation(arch, lengths, setting, head)
    backward = activations + logits + (gradients if cfg.accumulation > 1 else 0)
    # a tied embedding gets one gradient from the head and one from the lookup, before they are added
    last = gradients + (FLOAT * arch.vocabulary * arch.hidden if full else 0)
    held, slack = weights + own + optimizer, 1 + SLACK * setting.on_cpu
    training = int(slack * (held + max(backward, last)))
    total = max(training, int(slack * (held + evaluation)))
    return Memory(weights, own, gradients, optimizer, activations, logits, evaluation, training, total)


def _activations(arch: Architecture, cfg: RunConfig, added: Adapter, tokens: int, length: int, setting: Setting) -> int:
    layer = tokens * token_bytes(arch, added, length, setting)
    width = setting.width
    if setting.autocast:  # bf16 copies of float32 weights that the backward pass multiplies by
        wide = sum(m * n for _, m, n in arch.linears) if setting.kept == FLOAT else 0
        layer += width * (wide + max(added.stacked, 0 if added.kept_a_layer == 0 else added.trained)) / arch.layers
    else:
        layer += width * added.stacked / arch.layers
    if added.dora:  # PEFT's DoRA makes an identity matrix of each layer's input width
        layer += sum(FLOAT * n * n for _, _, n in added.layers) / arch.layers
    if cfg.checkpointing:
        return int(arch.layers * tokens * arch.hidden * setting.kept + layer)
    return int(arch.layers * layer)


def token_bytes(arch: Architecture, added: Adapter, length: int, setting: Setting) -> float:
    """Bytes that one layer keeps for the backward pass, per token of a row of ``length``, in the mean of all layers.

    With b = 4, or 2 in bf16, h = hidden, q = width of the query heads, a = their number, f = the MLP's inner width:

    - 2 · 4h: the inputs of the two norms, which are computed in float32 (full fine-tuning of an RMS norm: 4 · 4h,
      because its weight's gradient needs the normalised input).
    - b · n for every linear layer that trains or has an adapter whose A trains: its input, of width n. Layers that
      read the same input share it in float32; under autocast each makes a bf16 copy of its own. A frozen layer
      without an adapter keeps nothing: the gradient of x is Wᵀ times that of y.
    - 4 · b · q: queries, keys and values (repeated to all query heads) and the result, which is also the input of the
      output layer. Scaled-dot-product attention keeps no more, but for 4a (a logarithm a head) and b · T of the mask.
    - eager attention: 4 · a · T of weights, and b · a · T of the bf16 copy; with dropout on them two copies more.
    - b · f · 3 for a gated MLP (the gate's output, its silu, the other factor), · 1 for GELU, · 4 for GELU written
      out of tanh.
    - b · r, 2r or 4r a layer of the adapter: A x, N A x; twice the rank where a start is subtracted.
    - dropout in the model: its masks, 2 · 4h. DoRA: the output of each layer twice.
    """
    b, a, h = setting.width, arch.heads, arch.hidden
    full = added.kept_a_layer == 0
    # the output layer's input is the result of attention, which is counted there
    whole: float = (
        2 * FLOAT * h * (2 if full and arch.rms else 1) + 4 * b * arch.attention + b * arch.inner * arch.mlp_kept
    )
    if setting.quadratic:
        whole += a * length * (FLOAT + (b if setting.autocast else 0) + (2 * FLOAT if arch.dropout else 0))
    else:
        whole += FLOAT * a + b * length
    if arch.dropout:
        whole += 2 * FLOAT * h
    if not added.core_alone:
        whole += b * _inputs(added, setting.autocast) / arch.layers
    rest = added.kept_a_layer * len(added.layers)
    if added.dora:
        rest += 2 * sum(m for _, m, _ in added.layers)
    return whole + b * rest / arch.layers


def _inputs(added: Adapter, autocast: bool) -> int:
    """Widths of the inputs that are kept, summed over all layers, without those of attention's output layers."""
    last = [name.rsplit(".", 1) for name, _, _ in added.layers]
    rows = [
        (parent[0] if len(parent) == 2 else "", n)
        for parent, (_, _, n) in zip(last, added.layers, strict=True)
        if parent[-1] not in ("o_proj", "out_proj") and not (parent[-1] == "dense" and parent[0].endswith("n.output"))
    ]
    return sum(n for _, n in (rows if autocast else set(rows)))


def _evaluation(arch: Architecture, lengths: Lengths, setting: Setting, head: int) -> int:
    if head:
        return 0
    each = arch.layers * 2 * arch.cached * setting.width
    together = answered_at_once(lengths, each) if setting.on_cpu else 1  # a CPU does not say that it has no more
    cache = together * (lengths.prompt + lengths.answer) * each
    read = read_at_once(lengths.longest, arch.vocabulary)
    return max(cache, 3 * FLOAT * read * lengths.longest * arch.vocabulary)


def answered_at_once(lengths: Lengths, cached: int) -> int:
    """Prompts that are answered together where each token keeps ``cached`` bytes."""
    return max(1, min(ANSWERED_ROWS, tokens_at_once(cached) // max(1, lengths.prompt + lengths.answer)))


def step_flops(arch: Architecture, cfg: RunConfig, length: int, head: int = 0) -> float:
    """Floating-point operations of one optimiser step, a multiply-add counted as two.

    A token costs 2N forward, N being :meth:`Architecture.multiplied`, and 2N backward for the gradient of the
    activations; full fine-tuning 2N more, for that of the weights. Adapters: 2 forward and 4 backward for each of their
    numbers (2 of the frozen), twice that where a start is subtracted. Checkpointing: the forward pass of the
    layers again. Attention: 4 T q a layer forward and twice that backward, nothing saved for the causal half.
    """
    added, tokens = adapter(arch, cfg, head), cfg.batch_size * length
    N = arch.multiplied(head)
    attention = 4 * length * arch.attention * arch.layers
    each = 3 * attention + (6 if added.kept_a_layer == 0 else 4) * N
    if added.kept_a_layer:
        each += 6 * added.stacked if added.stacked else 6 * added.trained + 4 * added.frozen
    if cfg.checkpointing:
        each += 2 * (N - (head or arch.vocabulary) * arch.hidden) + attention
    return float(each * tokens)


def answer_flops(arch: Architecture, head: int = 0) -> float:
    """Floating-point operations of a token in a forward pass, attention's left out."""
    return 2.0 * arch.multiplied(head)


def rounds(rows: int, together: int) -> int:
    """How many batches of ``together`` rows make up ``rows``."""
    return math.ceil(rows / together)
