"""The memory of a run by formula: from its config and the shapes of its model alone.

The formulas are those of a transformer block as Llama, BERT and GPT-2 have it: norm, attention, norm, and an MLP of two
or three matrices. ``Memory`` and ``token_bytes`` derive them. A test compares them with what autograd really saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlora_lab.estimates.conditions import FLOAT32, Setting, run_setting
from nlora_lab.estimates.row_lengths import RowLengths, run_lengths
from nlora_lab.estimates.shapes import AdapterSizes, Architecture, adapter_sizes
from nlora_lab.models.batch_limits import ANSWER_ROWS, rows_per_forward, tokens_per_batch
from nlora_lab.runs.resolution import ResolvedRun

CPU_SLACK = 0.25  # of the memory in use, what a CPU run held beyond it: fitted to benchmarks/results/estimates.json


@dataclass(frozen=True)
class Memory:
    """The memory of a run in bytes, by what holds it, and at the worst moment.

    On a CPU, ``training`` and ``total`` are 1.25 times what their formulas say. The parts are what PyTorch allocates,
    and the allocator of the C library and the matrix libraries hold more.

    Attributes:
        weights: the model, 4 bytes per parameter, or 2 in bfloat16. A CPU holds it twice for a method that writes the
            weights, because the untouched model is needed for comparison.
        adapter: what the adapter trains and holds, 4 bytes per parameter. Full fine-tuning has no adapter.
        gradients: 4 bytes per trained parameter.
        optimizer: the two means of AdamW, 8 bytes per trained parameter.
        activations: ``token_bytes`` times the tokens of a micro-batch (``batch_size / accumulation`` rows) times the
            layers. With checkpointing it is one layer's, and the input of every layer.
        logits: 12 bytes per token of a micro-batch and per token of the vocabulary. The log-probabilities, their
            gradient and the gradient of the logits exist at the same time, 4 bytes each. A classification head has
            none.
        evaluation: the larger of two things. One is the cache of keys and values while answers are generated. The other
            is three times the logits of the rows that are read at once (``nlora_lab.models.batch_limits``), when the
            untrained adapter is compared with the model. On a card the cache is that of one prompt, because the
            number of prompts answered together adapts to the free memory.
        training: weights, adapter and optimizer, and the larger of two moments. One holds activations and logits, and
            with accumulation the gradients. The other holds the gradients, and in full fine-tuning those of the
            embedding once more: by then the activations are freed.
        total: ``training``, or weights, adapter, optimizer and evaluation where that is more.
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


def memory_needed(
    arch: Architecture, run: ResolvedRun, lengths: RowLengths | None = None, head: int | None = None
) -> Memory:
    """Compute the memory of a run.

    Args:
        arch: the architecture of the model.
        run: the resolved run.
        lengths: the tokens of its rows. Default: those of its task.
        head: the outputs of a classification head, or 0 for a language model. Default: those of its task.

    Returns:
        The memory in bytes, by parts and in total.

    Raises:
        InputError: the rank is above the smaller side of a layer, or no layer is adapted.
    """
    head = run.head if head is None else head
    lengths = run_lengths(arch, run.config) if lengths is None else lengths
    setting, added = run_setting(arch, run), adapter_sizes(arch, run, head)
    copies = 1 if run.method.freezes_base or not setting.on_cpu else 2
    weights = copies * setting.weight_bytes * arch.parameters(head)
    adapter = 0 if added.full else FLOAT32 * (added.trained + added.frozen)
    gradients, optimizer = FLOAT32 * added.trained, 2 * FLOAT32 * added.trained
    activations = _activations(arch, run, added, lengths, setting)
    logits = 0 if head else 3 * FLOAT32 * _tokens(run, lengths) * arch.vocabulary
    evaluation = _evaluation(arch, lengths, setting, head)
    first = activations + logits + (gradients if run.config.accumulation > 1 else 0)
    # a tied embedding has one gradient from the head and one from the lookup until they are added
    last = gradients + (FLOAT32 * arch.vocabulary * arch.hidden if added.full else 0)
    constant, slack = weights + adapter + optimizer, 1 + CPU_SLACK * setting.on_cpu
    training = int(slack * (constant + max(first, last)))
    total = max(training, int(slack * (constant + evaluation)))
    return Memory(weights, adapter, gradients, optimizer, activations, logits, evaluation, training, total)


def _tokens(run: ResolvedRun, lengths: RowLengths) -> int:
    """Tokens of a micro-batch."""
    return run.config.batch_size // run.config.accumulation * lengths.longest


def _activations(
    arch: Architecture, run: ResolvedRun, added: AdapterSizes, lengths: RowLengths, setting: Setting
) -> int:
    """Bytes that all layers save for the backward pass."""
    tokens = _tokens(run, lengths)
    layer = tokens * token_bytes(arch, added, lengths.longest, setting)
    if setting.autocast:  # bfloat16 copies of the float32 weights that the backward pass multiplies by
        float32_weights = sum(m * n for _, m, n in arch.linears) if setting.weight_bytes == FLOAT32 else 0
        copied = max(added.copied, 0 if added.full else added.trained)
        layer += setting.activation_bytes * (float32_weights + copied) / arch.layers
    else:
        layer += setting.activation_bytes * added.copied / arch.layers
    if added.dora:  # PEFT's DoRA builds an identity matrix as wide as the input of each layer
        layer += sum(FLOAT32 * n * n for _, _, n in added.layers) / arch.layers
    if run.config.checkpointing:
        return int(arch.layers * tokens * arch.hidden * setting.weight_bytes + layer)
    return int(arch.layers * layer)


def token_bytes(arch: Architecture, added: AdapterSizes, length: int, setting: Setting) -> float:
    """Compute how many bytes a layer saves per token for the backward pass.

    With b = 4, or 2 under autocast, h = ``hidden``, q = ``query_width``, a = ``heads``, f = ``mlp_width`` and T tokens
    in a row:

    - 2 · 4h for the inputs of the two norms, which are computed in float32. Full fine-tuning of an RMS norm saves
      4 · 4h, because the gradient of its weight needs the normalised input.
    - b · n for the input, of width n, of every linear layer that trains or whose adapter trains A. In float32, layers
      with the same input share it. Under autocast each copies it to bfloat16. A frozen layer without an adapter saves
      nothing: the gradient of x is Wᵀ times that of y.
    - 4 · b · q for queries, keys and values (repeated to all query heads) and the result of attention, which is also
      the input of the output layer. Scaled-dot-product attention saves only 4a more (a logarithm per head), and b · T
      of the mask.
    - 4 · a · T for the weights of eager attention, and b · a · T for their bfloat16 copy. With dropout on these
      weights there are two more copies.
    - b · f · 3 for a gated MLP (the output of the gate, its SiLU, the other factor), b · f for GELU, and b · f · 4 for
      a GELU that is composed of tanh.
    - b · r, 2r or 4r per adapted layer, for A x and N A x. The rank counts twice where a start is subtracted.
    - 2 · 4h for the masks of dropout in the model. DoRA saves the output of each layer twice.

    Args:
        arch: the architecture of the model.
        added: the sizes of the adapter.
        length: the tokens T in a row.
        setting: how the run computes.

    Returns:
        Bytes per token of a row and per layer, averaged over all layers.
    """
    b, a, h = setting.activation_bytes, arch.heads, arch.hidden
    norms = 2 * FLOAT32 * h * (2 if added.full and arch.rms_norm else 1)
    # the input of the output layer is the result of attention, and counts there
    block: float = norms + 4 * b * arch.query_width + b * arch.mlp_width * arch.mlp_tensors
    if setting.eager_attention:
        block += a * length * (FLOAT32 + (b if setting.autocast else 0) + (2 * FLOAT32 if arch.dropout else 0))
    else:
        block += FLOAT32 * a + b * length
    if arch.dropout:
        block += 2 * FLOAT32 * h
    if not added.core_alone:
        block += b * _input_widths(added, setting.autocast) / arch.layers
    inner = added.saved_per_layer * len(added.layers)
    if added.dora:
        inner += 2 * sum(m for _, m, _ in added.layers)
    return block + b * inner / arch.layers


def _input_widths(added: AdapterSizes, autocast: bool) -> int:
    """Sum the widths of the inputs that are saved over all layers, without those of the output layers of attention."""
    inputs = []
    for name, _, n in added.layers:
        parent, _, leaf = name.rpartition(".")
        if leaf not in ("o_proj", "out_proj") and not (leaf == "dense" and parent.endswith("n.output")):
            inputs.append((parent, n))  # layers with the same parent and width read the same input
    return sum(n for _, n in (inputs if autocast else set(inputs)))


def _evaluation(arch: Architecture, lengths: RowLengths, setting: Setting, head: int) -> int:
    """Bytes of the largest tensors while a run is evaluated."""
    if head:
        return 0
    per_token = cached_bytes(arch, setting)
    together = answered_at_once(lengths, per_token) if setting.on_cpu else 1  # a CPU cannot adapt to its memory
    cache = together * (lengths.prompt + lengths.answer) * per_token
    rows = rows_per_forward(lengths.longest, arch.vocabulary)
    return max(cache, 3 * FLOAT32 * rows * lengths.longest * arch.vocabulary)


def cached_bytes(arch: Architecture, setting: Setting) -> int:
    """Return the bytes of keys and values that the model caches per token."""
    return arch.layers * 2 * arch.key_width * setting.activation_bytes


def answered_at_once(lengths: RowLengths, per_token: int) -> int:
    """Return how many prompts are answered together where each token caches ``per_token`` bytes."""
    return max(1, min(ANSWER_ROWS, tokens_per_batch(per_token) // max(1, lengths.prompt + lengths.answer)))
