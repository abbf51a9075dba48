"""The shapes of a model and of the adapter on it: all that an estimate needs to know of either."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.models.hub import check_reachable
from nlora_lab.models.layers import layer_shape, target_layers
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import SHIPPED, check_model
from nlora_lab.runs.resolution import ResolvedRun

LayerShapes = tuple[tuple[str, int, int], ...]
"""Name, outputs m and inputs n of linear layers."""

GATES = ("gate_proj", "w1", "gate_up_proj", "wi_0")  # names of the layer that makes an MLP a gated one
TANH_GELUS = ("gelu_new", "gelu_fast", "quick_gelu")  # activation functions that are composed of several operations


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model that decide memory and time.

    Attributes:
        layers: the number of transformer blocks.
        hidden: the width of the residual stream.
        heads: the number of query heads.
        query_width: the width of all query heads together.
        key_width: the width of all key heads together. The values have the same.
        mlp_width: the inner width of the MLP.
        mlp_tensors: how many tensors of width ``mlp_width`` the activation function saves for the backward pass.
        vocabulary: the number of tokens in the vocabulary.
        tied: whether the output head shares the weight of the input embedding.
        body: the parameters of the model without its output head.
        positions: the largest number of tokens in a row, or ``None`` if the config names no limit.
        dropout: whether the model has dropout.
        has_sdpa: whether the model can use scaled-dot-product attention.
        rms_norm: whether its norms are RMS norms.
        linears: name, outputs and inputs of every linear layer but the output head.
    """

    layers: int
    hidden: int
    heads: int
    query_width: int
    key_width: int
    mlp_width: int
    mlp_tensors: int
    vocabulary: int
    tied: bool
    body: int
    positions: int | None
    dropout: bool
    has_sdpa: bool
    rms_norm: bool
    linears: LayerShapes

    @property
    def narrowest(self) -> int:
        """The smaller side of the narrowest linear layer, which no rank may exceed."""
        return min(min(m, n) for _, m, n in self.linears)

    def parameters(self, head: int = 0) -> int:
        """Count all parameters of the model.

        Args:
            head: the outputs of a classification head, or 0 for the output head of a language model.

        Returns:
            The number of parameters, with that head. A tied head adds none.
        """
        return self.body + (head * self.hidden if head else 0 if self.tied else self.vocabulary * self.hidden)

    def multiplied(self, head: int = 0) -> int:
        """Count the parameters that every token is multiplied by: those of the linear layers and of the head.

        Args:
            head: the outputs of a classification head, or 0 for the output head of a language model.

        Returns:
            The number of parameters. A tied head counts, because it is multiplied by.
        """
        return sum(m * n for _, m, n in self.linears) + (head or self.vocabulary) * self.hidden


def read_architecture(model: str, revision: str | None = None) -> Architecture:
    """Read the architecture of a model from its ``config.json`` alone. The result is cached in this process.

    Args:
        model: "embedded", "larger", a folder, or a hub id.
        revision: branch, tag or commit of a model on the hub. Default: its main branch.

    Returns:
        The architecture.

    Raises:
        ModelError: the config does not exist, cannot be reached, or names no sizes.
    """
    source = check_model(model)
    if isinstance(source, str):
        check_reachable(source)  # the hub's own client would try for a minute
    return _read(model, revision)


@lru_cache(maxsize=64)
def _read(model: str, revision: str | None) -> Architecture:
    if revision is None:
        return architecture_sizes(meta_body(model))
    from transformers import AutoConfig

    try:
        source = shipped_folder("data") / model if model in SHIPPED else model
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        raise ModelError(f"model={model!r} has no config at revision={revision!r}; check both names") from error
    return architecture_sizes(meta_body(config))


def architecture_sizes(body: Any) -> Architecture:
    """Read the sizes off a model without its output head.

    Args:
        body: a transformers model, such as ``nlora_lab.models.loading.meta_body`` returns. Its weights are not needed.

    Returns:
        The architecture.

    Raises:
        ModelError: the config of the model lacks a size that every estimate needs.
    """
    config = body.config.get_text_config()

    def field(*names: str, default: Any = None) -> Any:
        return next((v for name in names if (v := getattr(config, name, None)) is not None), default)

    hidden, layers, heads = field("hidden_size"), field("num_hidden_layers"), field("num_attention_heads")
    if not all(isinstance(size, int) and size > 0 for size in (hidden, layers, heads)):
        raise ModelError(
            f"the config of a {config.model_type} lacks hidden_size, num_hidden_layers or num_attention_heads, "
            "which an estimate needs; choose another model"
        )
    width = field("head_dim", default=hidden // heads)
    linears = tuple((name, *layer_shape(layer)) for name, layer in target_layers(body).items())
    gated = any(name.rsplit(".", 1)[-1] in GATES for name, _, _ in linears)
    composed = field("hidden_act", "activation_function") in TANH_GELUS
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        query_width=heads * width,
        key_width=field("num_key_value_heads", default=heads) * width,
        mlp_width=field("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        mlp_tensors=3 if gated else 4 if composed else 1,
        vocabulary=config.vocab_size,
        tied=bool(field("tie_word_embeddings", default=True)),
        body=sum(p.numel() for p in body.parameters()),
        positions=field("max_position_embeddings"),
        dropout=bool(field("hidden_dropout_prob", "resid_pdrop", "dropout", default=0.0)),
        has_sdpa=bool(getattr(body, "_supports_sdpa", False)),
        rms_norm=field("rms_norm_eps") is not None,
        linears=linears,
    )


@dataclass(frozen=True)
class AdapterSizes:
    """What a method adds to an architecture.

    Attributes:
        trained: the parameters that train, in float32.
        layers: name, outputs and inputs of the layers that are adapted.
        frozen: the parameters that the adapter holds but does not train (a start, or frozen factors), in float32.
        copied: the parameters that are copied in each forward pass, because a start is subtracted.
        saved_per_layer: numbers per token that a layer saves of its inner results for the backward pass.
        full: whether the method is full fine-tuning, which has no adapter.
        core_alone: whether only N trains. The input of a layer is then not saved.
        dora: whether the lengths of the rows of W train too, as in DoRA.
    """

    trained: int
    layers: LayerShapes
    frozen: int = 0
    copied: int = 0
    saved_per_layer: int = 0
    full: bool = False
    core_alone: bool = False
    dora: bool = False


def adapter_sizes(arch: Architecture, run: ResolvedRun, head: int = 0) -> AdapterSizes:
    """Count what the method of a run adds at its rank.

    Args:
        arch: the architecture of the model.
        run: the resolved run.
        head: the outputs of a classification head, or 0 for a language model.

    Returns:
        The sizes of the adapter. Full fine-tuning trains all parameters of the model.

    Raises:
        InputError: the rank is above the smaller side of a layer, or no layer is adapted.
    """
    method, cfg, r = run.method, run.config, run.config.rank
    if method.build is None:
        return AdapterSizes(arch.parameters(head), arch.linears, full=True)
    layers = _adapted_layers(arch, run.targets)
    name, m, n = min(layers, key=lambda layer: min(layer[1:]))
    if r > min(m, n):
        raise InputError(f"rank={r} is above {min(m, n)}, the smaller side of {name}; choose a smaller rank")
    peft_config = method.build(r, cfg.alpha, cfg.init, target_modules="all-linear")
    is_nlora = hasattr(peft_config, "residual")
    residual = getattr(peft_config, "residual", False)
    core_alone = getattr(peft_config, "train", None) == "N"
    subtracts_start = residual and not core_alone and not peft_config.fold
    trained = sum(method.cost(m, n, r) for _, m, n in layers)
    factors = sum(r * (m + n) + r * r for _, m, n in layers)
    frozen = 0
    if core_alone:
        frozen = factors - trained + residual * len(layers) * r * r  # B and A, and the start of N
    elif residual:
        frozen = factors  # the start of all three
    # see adapters.products: where a start is subtracted, each pass puts together factors of twice the rank
    inner = r if core_alone or not is_nlora else 4 * r if subtracts_start else 2 * r
    return AdapterSizes(
        trained=trained,
        layers=layers,
        frozen=frozen,
        copied=2 * factors if subtracts_start else 0,
        saved_per_layer=inner,
        core_alone=core_alone,
        dora=bool(getattr(peft_config, "use_dora", False)),
    )


def _adapted_layers(arch: Architecture, targets: str | list[str]) -> LayerShapes:
    """Choose layers by PEFT's rule for a list of names: the last parts of a layer's dotted name, or all of it.

    The names in ``arch`` are those inside the body. A complete name starts with the body's own.
    """
    if isinstance(targets, str):  # "all-linear"
        return arch.linears

    def matches(name: str, target: str) -> bool:
        return f".{name}".endswith(f".{target}") or target.endswith(f".{name}")

    for target in targets:
        if not any(matches(name, target) for name, _, _ in arch.linears):
            raise InputError(f"target_modules: {target!r} matches no layer of this model; name some of its layers")
    return tuple(row for row in arch.linears if any(matches(row[0], target) for target in targets))
