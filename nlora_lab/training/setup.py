"""Everything that exists before the first step: the model with its adapter, the rows, the optimiser, the batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlora_lab.core.devices import PeakMemory
from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import StopCheck, never_stop, raise_if_stopped
from nlora_lab.estimates.requirements import check_fit
from nlora_lab.methods.attachment import attach
from nlora_lab.models.heads import check_end_tokens
from nlora_lab.models.loading import LOADING_LOCK, load_model, position_limit, revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun, resolve
from nlora_lab.tasks.batches import training_batches
from nlora_lab.training import distributed, measurement
from nlora_lab.training.checkpoints import CheckpointFolder, CheckpointWriter
from nlora_lab.training.data import RemainingBatches, TrainingData, check_packing, token_limit
from nlora_lab.training.layer_views import ObservedPeftModel
from nlora_lab.training.session import Callback, RunState, TrainingSession

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def set_up(
    run: ResolvedRun,
    state: RunState,
    should_stop: StopCheck = never_stop,
    folder: CheckpointFolder | None = None,
) -> TrainingSession:
    """Load, attach and prepare everything that the training loop needs.

    Args:
        run: the resolved run.
        state: gets what is known before the first step, and the earlier steps if a checkpoint is resumed.
        should_stop: asked between the stages of loading.
        folder: the checkpoints of the run, if it keeps any.

    Returns:
        A session that is ready for its next step: the first one, or the one after the checkpoint.

    Raises:
        InputError: model, task and config do not fit together, or the estimated memory is not available.
        Interrupted: ``should_stop`` returned True.
    """
    cfg = run.config
    accelerator = distributed.make_accelerator(run.device)
    check_fit(cfg, run.device)
    distributed.check_processes(cfg, accelerator)
    task = run.task
    raise_if_stopped(should_stop)
    model, tokenizer = build(cfg, task.head)
    raise_if_stopped(should_stop)
    data = TrainingData(cfg, task, tokenizer, token_limit(cfg, model, tokenizer), position_limit(model, tokenizer))
    if cfg.batching == "packed":
        check_packing(model, data)
    if task.head:
        check_end_tokens(model, tokenizer, [*data.training.rows, *data.validation.rows, *data.test.rows])
    state.describe(model, data)
    base = load_untouched_base(run)
    observed = ObservedPeftModel(model, base)
    raise_if_stopped(should_stop)
    if not distributed.is_sharded(accelerator):
        model.to(accelerator.device)
        state.metrics["step0_change"] = measurement.first_change(model, data, base)
    raise_if_stopped(should_stop)

    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    checkpoint = None if folder is None else folder.newest(data.digest, state.revision, shapes)
    if checkpoint is not None:
        state.continue_from(checkpoint.run)
    done = len(state.steps)
    batches = training_batches(data.training, tokenizer, RemainingBatches(data.order(), done))
    trained = [(_is_factor_b(name), p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, cfg, fused=run.device.kind == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cfg.rate_factor(done + step))
    model, optimizer, batches, schedule = distributed.prepare(accelerator, model, optimizer, batches, schedule)
    if distributed.is_sharded(accelerator) and (base is None or not hasattr(model, "peft_config")):
        state.metrics["step0_change"] = measurement.first_change(model, data, None)

    memory = PeakMemory(run.device.kind)
    with LOADING_LOCK:  # not while another thread draws the weights of its adapter
        torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # dropout
    callbacks: list[Callback] = [measurement.HeldOutCallback(cfg.measure_every)] if cfg.measure_every else []
    callbacks += [] if folder is None else [CheckpointWriter(folder, data.digest)]
    if folder is not None and checkpoint is not None:
        folder.restore(checkpoint, accelerator, accelerator.unwrap_model(model), optimizer)
    # only here: sharding has put other parameters into the model, and the session takes those
    return TrainingSession(
        run, state, accelerator, model, optimizer, schedule, batches, data, observed, memory,
        should_stop=should_stop, callbacks=tuple(callbacks),
    )  # fmt: skip


def build(cfg: RunConfig, head: int | None = None) -> tuple[Any, Any]:
    """Build the base model with the adapter of a run, from the seed of the run.

    Args:
        cfg: the config of the run.
        head: the outputs of a classification head, 0 for a language model. ``None`` asks the task.

    Returns:
        The model on the CPU, and its tokenizer.

    Raises:
        InputError: the model cannot be loaded, or the adapter does not fit it.
    """
    run = resolve(cfg)
    outputs = run.head if head is None else head
    with LOADING_LOCK:  # another thread must not draw from the global generator in between
        torch.manual_seed(cfg.seed)  # a new head is drawn while loading
        base, tokenizer = load_base(run, outputs)
        torch.manual_seed(cfg.seed)
        options: dict[str, Any] = {"dropout": cfg.dropout} if cfg.dropout else {}
        model = attach(base, cfg.method, cfg.rank, cfg.alpha, cfg.init, target_modules=run.targets, **options)
        if cfg.replicate:
            move_by_rounding(model, cfg.replicate)
    for config in getattr(model, "peft_config", {}).values():
        config.revision = revision_of(base) or None  # the adapter is saved with the commit it belongs to
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a new head comes in the dtype of the base
    if outputs:
        _widen_inputs(model)
    if cfg.checkpointing:
        # transformers 5.2x is renaming the method
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model, tokenizer


def make_optimizer(trained: Iterable[tuple[bool, Tensor]], cfg: RunConfig, fused: bool) -> torch.optim.AdamW:
    """Build AdamW over what trains. The factors B have the rate ``lr_ratio · lr`` (LoRA+), all else has ``lr``.

    Args:
        trained: for each tensor, whether it is a factor B.
        cfg: the config of the run.
        fused: whether to use the fused kernel of a card.

    Returns:
        The optimiser, with two groups if ``lr_ratio`` is not 1.

    Raises:
        InputError: ``lr_ratio`` is not 1, and no factor B trains.
    """
    listed = list(trained)
    options: dict[str, Any] = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "fused": fused}
    if cfg.lr_ratio == 1:
        return torch.optim.AdamW([p for _, p in listed], **options)
    of_b, others = ([p for is_b, p in listed if is_b is wanted] for wanted in (True, False))
    if not of_b:
        raise InputError(f"lr_ratio={cfg.lr_ratio:g} is for the factors B, and {cfg.method} trains none; leave it out")
    groups: list[dict[str, Any]] = [{"params": others}, {"params": of_b, "lr": cfg.lr * cfg.lr_ratio}]
    return torch.optim.AdamW(groups, **options)


def _is_factor_b(name: str) -> bool:
    """Whether a parameter is a factor B: ``….lora_B.default.weight``, ``….lora_embedding_B.default``."""
    return name.removesuffix(".weight").rpartition(".")[0].endswith(("lora_B", "lora_embedding_B"))


@torch.no_grad()
def move_by_rounding(model: Any, replicate: int) -> None:
    """Move every trained number to its next float, up or down at random.

    Args:
        model: the model with its adapter, changed in place.
        replicate: the seed of the directions.
    """
    generator = torch.Generator().manual_seed(replicate)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        parameter.copy_(torch.nextafter(parameter, torch.where(up, torch.inf, -torch.inf).to(parameter)))


def load_base(run: ResolvedRun, head: int = 0) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the model of ``run`` on the CPU without an adapter, and its tokenizer. ``head``: see ``load_model``."""
    c = run.config
    labels = run.labels if head else ()
    return load_model(c.model, head=head, labels=labels, revision=c.revision, dtype=run.dtype, attention=c.attention)


def load_untouched_base(run: ResolvedRun) -> Any:
    """Load the base model a second time, on the CPU, for methods that write its weights. Else return ``None``."""
    if run.method.freezes_base:
        return None
    with LOADING_LOCK:
        torch.manual_seed(run.config.seed)  # the same new head as in build
        return load_base(run, run.head)[0]


def _widen_inputs(model: Any) -> None:
    """Let a head in float32 follow a body in bfloat16 without autocast too, as adapters do."""

    def widen(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(module.weight.dtype) if torch.is_tensor(x) else x for x in inputs)

    for name, module in model.named_modules():
        if ".modules_to_save." in name and module._parameters.get("weight") is not None:
            module.register_forward_pre_hook(widen)
