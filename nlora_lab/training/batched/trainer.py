"""Trains several adapters on one base model in one loop.

Each adapter starts, learns and is measured as ``fine_tune`` would do it alone, with its own start, batches, rate,
clipping and optimiser state. The adapters share the base model, its matrix products, and the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora_lab.core.devices import PeakMemory, is_out_of_memory, release_memory
from nlora_lab.core.interrupts import StopCheck, raise_if_stopped
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.models.loading import position_limit, revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import ResolvedRun
from nlora_lab.runs.run import Step
from nlora_lab.tasks.batches import BatchOrder, Collate, training_batches
from nlora_lab.tasks.encoding import IGNORED
from nlora_lab.training import measurement, setup
from nlora_lab.training.batched.adapters import CannotBatch, ExtractedAdapter
from nlora_lab.training.batched.model import BatchedModel, ObservedBatchedAdapter
from nlora_lab.training.batched.reporter import RunReporter
from nlora_lab.training.data import TrainingData, token_limit
from nlora_lab.training.distributed import Batch, make_accelerator
from nlora_lab.training.layer_views import ObservedModel
from nlora_lab.training.session import RunState, memory_advice, warn_of_untrained

if TYPE_CHECKING:
    from accelerate import Accelerator

CPU_TOKENS = 1536
"""Tokens that go through the model at once on a CPU, or the batch of one adapter if that is larger.

With more tokens nothing stays in the caches, and the output of every layer is fresh memory. A GPU takes all at once.
"""


@dataclass
class AdapterRun:
    """One run of a batch. ``number`` is the position of its config in the race."""

    number: int
    run: ResolvedRun
    state: RunState
    adapter: ExtractedAdapter
    optimizer: torch.optim.Optimizer
    observed: ObservedModel

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return self.run.config

    def clip_gradients(self) -> Tensor:
        """Clip this adapter's gradients as its config says. Return their norm before that, a scalar."""
        return torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip_norm or math.inf)

    def update(self, step: int) -> None:
        """Make update ``step`` (from 0) of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.config.rate_factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad()


class BatchedTrainer:
    """Trains runs that agree in model, task, steps, batch size and device.

    Args:
        runs: the resolved runs, by the positions of their configs in the race.
        reporter: gets every run when it is finished.
    """

    def __init__(self, runs: Mapping[int, ResolvedRun], reporter: RunReporter) -> None:
        self.runs, self.reporter = runs, reporter
        self.shared = next(iter(runs.values()))
        self.states: dict[int, RunState] = {}
        self.alone: list[int] = []  # runs that turn out not to share a base model

    def train(self) -> list[int]:
        """Train and measure the runs.

        Returns:
            The numbers of the runs that have to train alone instead.
        """
        try:
            self._train_and_measure()
            return self.alone
        except CannotBatch:
            return list(self.runs)
        except Exception as error:
            if not is_out_of_memory(error):  # what was trained is kept, and the error is raised
                self._fail(f"{type(error).__name__}: {error}", [i for i in self._unfinished() if self._has_steps(i)])
                raise
        release_memory()  # only here: the frames that held the model are gone
        unfinished = self._unfinished()
        for i in unfinished:
            self.states.setdefault(i, RunState())
        self._fail(memory_advice(self.shared.config, self.shared.device, together=len(unfinished)), unfinished)
        return self.alone

    def _unfinished(self) -> list[int]:
        return [i for i in self.runs if i not in self.alone and i not in self.reporter.runs]

    def _has_steps(self, number: int) -> bool:
        return number in self.states and bool(self.states[number].steps)

    def _fail(self, reason: str, numbers: Sequence[int]) -> None:
        """Report these runs as failed."""
        for i in numbers:
            self.states[i].error = reason
            self.reporter.finish(i, self.states[i].to_run(self.runs[i]))

    def _train_and_measure(self) -> None:
        accelerator = make_accelerator(self.shared.device)
        if accelerator.num_processes > 1:
            raise CannotBatch("several processes share the batches of a run")
        task = self.shared.task
        base, tokenizer = setup.load_base(self.shared)
        cfg = self.shared.config
        data = TrainingData(cfg, task, tokenizer, token_limit(cfg, base, tokenizer), position_limit(base, tokenizer))
        model, adapters = self._extract_adapters(base)
        if data.training.cut:
            for state in self.states.values():
                state.metrics["cut"] = data.training.cut
        model.to(accelerator.device)
        batch = [self._adapter_run(number, adapter, model) for number, adapter in adapters.items()]
        for run in batch:
            raise_if_stopped(self.reporter.is_over)
            with model.single(run.adapter):
                run.state.metrics["step0_change"] = measurement.first_change(model, data, None)
        batches = SeededBatches(data, [run.config for run in batch])
        passes = BatchedPasses(accelerator, accelerator.prepare(model), batches, PeakMemory(self.shared.device.kind))
        try:
            stopped = self._loop(passes, batch, data)
        finally:
            for run in batch:
                run.state.peak_memory = passes.memory.bytes
        self._measure(passes, batch, data, stopped)

    def _extract_adapters(self, base: Any) -> tuple[BatchedModel, dict[int, ExtractedAdapter]]:
        """Build every adapter as for a run alone, and put all that fit onto the base model."""
        adapters: dict[int, ExtractedAdapter] = {}
        for i, run in self.runs.items():
            raise_if_stopped(self.reporter.is_over)
            model, _ = setup.build(run.config, 0)
            try:
                adapters[i] = ExtractedAdapter(model, base)
            except CannotBatch:
                self.alone.append(i)
                continue
            self.states[i] = RunState(trainable=trainable_parameters(model), revision=revision_of(base))
        layers = [adapter.layers for adapter in adapters.values()]
        common = max(layers, key=layers.count, default=None)
        for i in [i for i, adapter in adapters.items() if adapter.layers != common]:
            self.alone.append(i)
            del adapters[i], self.states[i]
        if len(adapters) < 2:
            raise CannotBatch("a single adapter has nothing to share the base model with")
        for state in self.states.values():
            state.together = len(adapters)
        return BatchedModel(base, list(adapters.values())), adapters

    def _adapter_run(self, number: int, adapter: ExtractedAdapter, model: BatchedModel) -> AdapterRun:
        run = self.runs[number]
        adapter.to(model.device)
        cfg, fused = run.config, model.device.type == "cuda"
        trained = [(letter == "B", p) for letter, p in adapter.named_parameters()]
        optimizer = setup.make_optimizer(trained, cfg, fused)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        observed = ObservedBatchedAdapter(model, adapter)
        return AdapterRun(number, run, self.states[number], adapter, optimizer, observed)

    def _loop(self, passes: BatchedPasses, batch: list[AdapterRun], data: TrainingData) -> bool:
        """Make the steps. Runs that diverge leave ``batch`` and are reported. Return whether the rest was stopped."""
        clock, stopped = SharedClock(), False
        passes.model.train()
        try:
            for number, batches in enumerate(passes.batches, start=1):
                passes.backward(number, batch, batches, self.reporter.is_over)
                for run in batch:
                    if self.reporter.watch is not None:
                        self.reporter.watch(run.config, number - 1, run.observed)
                for run in batch:
                    if not run.state.diverged:
                        run.update(number - 1)
                clock.share(batch)
                for run in [run for run in batch if run.state.diverged]:
                    batch.remove(run)
                    self._report(run, passes)
                for run in batch:
                    self.reporter.step(run.config, run.state.steps[-1])
                clock.share(batch)
                self._measure_on_the_way(passes, batch, number, data)
                clock.skip()
                if not batch or self.reporter.is_over():
                    stopped = number < self.shared.config.steps
                    break
        except KeyboardInterrupt:
            self.reporter.stopped = stopped = True
            for run in batch:
                run.optimizer.zero_grad()  # the gradients of a step that was not made
            clock.share(batch)
        return stopped

    def _measure_on_the_way(
        self, passes: BatchedPasses, batch: list[AdapterRun], number: int, data: TrainingData
    ) -> None:
        for run in batch:
            if run.config.measure_every and number % run.config.measure_every == 0:
                with passes.model.single(run.adapter):
                    measurement.measure_on_the_way(run.state, passes.model, data, self.reporter.should_stop)

    def _measure(self, passes: BatchedPasses, batch: list[AdapterRun], data: TrainingData, stopped: bool) -> None:
        for run in batch:
            run.state.weights = run.adapter.weights()  # of all runs, before anything can end the measuring
        if self.reporter.on_trained is not None:
            for run in (run for run in batch if not run.state.diverged):
                self.reporter.on_trained(run.state.unmeasured(run.run), None)
        for run in batch:
            stopped = stopped or self.reporter.should_stop()
            run.state.stopped = stopped and not run.state.diverged
            try:
                if not run.state.diverged:
                    run.observed.ended = True
                    with passes.model.single(run.adapter):
                        if self.reporter.watch is not None:
                            self.reporter.watch(run.config, len(run.state.steps), run.observed)
                        measurement.measure_result(
                            run.state, passes.model, data, run.observed, self.reporter.should_stop
                        )
                    passes.memory.look()
                    stopped = run.state.stopped  # perhaps while it was measured
                    self.reporter.stopped = self.reporter.stopped or stopped
            except KeyboardInterrupt:
                self.reporter.stopped = stopped = run.state.stopped = True
            self._report(run, passes)

    def _report(self, run: AdapterRun, passes: BatchedPasses) -> None:
        """Report a run that is done."""
        run.state.weights, run.state.peak_memory = run.adapter.weights(), passes.memory.bytes
        self.reporter.finish(run.number, run.state.to_run(run.run))


@dataclass(frozen=True)
class BatchedPasses:
    """The passes of a batch of adapters through the model, and what they need.

    Attributes:
        accelerator: places tensors on the device and sets the precision.
        model: the base model with its batched layers.
        batches: the batches of every seed.
        memory: the peak of memory so far.
    """

    accelerator: Accelerator
    model: BatchedModel
    batches: SeededBatches
    memory: PeakMemory

    def backward(
        self, number: int, batch: Sequence[AdapterRun], batches: Mapping[int, Batch], should_stop: StopCheck
    ) -> None:
        """Give every adapter its clipped gradients, and its state the step ``number``, finite or not.

        ``should_stop`` is asked between adapters that do not go through the model at once. With many adapters a step
        takes seconds.
        """
        # neighbours of one width are multiplied together
        ordered = sorted(batch, key=lambda run: run.adapter.width)
        losses = []
        for group in self._groups(ordered, batches):
            raise_if_stopped(should_stop)
            losses.append(self._losses(group, self.batches.join(batches, group)))
            self.memory.look()
        if number == 1:
            for run in ordered:
                warn_of_untrained(run.adapter.factors_without_gradient())
        norms = torch.stack([run.clip_gradients() for run in ordered])
        numbers = torch.stack([torch.cat(losses), norms]).tolist()  # the only moment when a step waits for a GPU
        for run, loss, norm in zip(ordered, *numbers, strict=True):
            run.state.add(Step(number, loss, run.config.rate_at(number - 1), norm))

    def _groups(self, batch: Sequence[AdapterRun], batches: Mapping[int, Batch]) -> Iterator[Sequence[AdapterRun]]:
        """Divide the adapters into groups that go through the model at once."""
        largest = max(tokens["input_ids"].numel() for tokens in batches.values())
        size = max(1, CPU_TOKENS // largest) if self.model.device.type == "cpu" else len(batch)
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

    def _losses(self, group: Sequence[AdapterRun], batch: Batch) -> Tensor:
        """The losses (K,) of K adapters on their parts of ``batch`` (K·B, T), after the backward pass of all."""
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        labels = batch.pop("labels")
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        with self.model.active([run.adapter for run in group], dtype):
            logits = self.model(**batch, use_cache=False).logits
            losses = mean_losses(logits, labels, len(group))
            self.accelerator.backward(losses.sum())  # no loss depends on the factors of another adapter
        return losses.detach()


class SeededBatches:
    """The batches of every seed among ``configs``, step by step.

    Args:
        data: the rows that all configs share.
        configs: the configs.
    """

    def __init__(self, data: TrainingData, configs: Sequence[RunConfig]) -> None:
        rows = data.training
        orders = {c.seed: BatchOrder(len(rows.rows), c.steps, c.batch_size, c.seed) for c in configs}
        self._loaders = {seed: training_batches(rows, data.tokenizer, order) for seed, order in orders.items()}
        self._fill = Collate(int(data.tokenizer.pad_token_id)).fill

    def __iter__(self) -> Iterator[dict[int, Batch]]:
        for batches in zip(*self._loaders.values(), strict=True):
            yield dict(zip(self._loaders, batches, strict=True))

    def join(self, batches: Mapping[int, Batch], group: Sequence[AdapterRun]) -> Batch:
        """Put the batches (B, T) of the adapters one below the other, padded to the longest: (K·B, T)."""
        parts = [batches[run.config.seed] for run in group]
        longest = max(part["input_ids"].shape[1] for part in parts)
        return {
            key: torch.cat([F.pad(part[key], (0, longest - part[key].shape[1]), value=fill) for part in parts])
            for key, fill in self._fill.items()
        }


class SharedClock:
    """Divides time equally among the runs that trained in it."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def share(self, batch: Sequence[AdapterRun]) -> None:
        """Add the time since the last call to the seconds of the runs in ``batch``, in equal parts."""
        now = time.perf_counter()
        for run in batch:
            run.state.seconds += (now - self._last) / len(batch)
        self._last = now

    def skip(self) -> None:
        """Leave out the time since the last call of ``share``."""
        self._last = time.perf_counter()


def mean_losses(logits: Tensor, labels: Tensor, adapters: int) -> Tensor:
    """Compute transformers' mean cross-entropy of the next token, for each adapter's part of a batch.

    Args:
        logits: (K·B, T, V) for K adapters.
        labels: (K·B, T), ``IGNORED`` where no token is to be predicted.
        adapters: K.

    Returns:
        The losses (K,), in nats per token.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (targets != IGNORED).view(adapters, -1).sum(1)
    return losses.view(adapters, -1).sum(1) / counts
