"""A heat: the adapters of a race that train together, in one loop.

Each starts, learns and is measured as :func:`nlora_lab.training.loop.fine_tune` would do it alone: its own start, batches,
rate, clipping and optimiser state. What they share is the base model, its products, and the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nlora_lab.core.devices import PeakMemory, is_out_of_memory, release_memory
from nlora_lab.core.interrupts import StopCheck, raise_if_stopped
from nlora_lab.methods.parameters import trainable_parameters
from nlora_lab.models.loading import position_limit, revision_of
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve, run_device
from nlora_lab.runs.run import Run, Step
from nlora_lab.tasks.batches import IGNORED, BatchOrder, Collate, training_batches
from nlora_lab.training import loop as training
from nlora_lab.training import setup as building
from nlora_lab.training.batched_adapters import CannotBatch, ExtractedAdapter
from nlora_lab.training.batched_model import BatchedModel, ObservedBatchedAdapter
from nlora_lab.training.distributed import make_accelerator
from nlora_lab.training.layer_views import ObservedModel
from nlora_lab.training.loop import RunState
from nlora_lab.training.setup import Data, load_base, token_limit

if TYPE_CHECKING:
    from accelerate import Accelerator

OnStep = Callable[[RunConfig, Step], bool | None]
"""Called for every adapter after every step; returning True ends the whole race and keeps what there is."""

Watch = Callable[[RunConfig, int, ObservedModel], None]
"""Called with the config, the number of updates made so far and the adapter as it is then, at the same moments as
:data:`nlora_lab.training.loop.Watch`."""

Batch = dict[str, Tensor]

CPU_TOKENS = 1536
"""As many go through the model at once on a CPU, or one adapter's batch: with more of them nothing stays in the caches,
and every layer's output is fresh memory. A GPU takes all at once."""


@dataclass
class RunReporter:
    """Where the news of a race go, and where its end is decided."""

    on_step: OnStep | None
    on_run: Callable[[Run], None] | None
    should_stop: StopCheck
    watch: Watch | None
    runs: dict[int, Run] = field(default_factory=dict)
    stopped: bool = False

    def over(self) -> bool:
        """Whether someone has asked for the end."""
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def step(self, cfg: RunConfig, step: Step) -> bool:
        """Say that a step was made; whether the race is to end."""
        if self.on_step is not None and self.on_step(cfg, step):
            self.stopped = True
        return self.over()

    def take(self, number: int, run: Run) -> None:
        """Keep a finished run, and hand it on."""
        self.runs[number] = run
        if self.on_run is not None:
            self.on_run(run)


@dataclass
class AdapterRun:
    """One adapter in a heat; ``number`` is its place among the race's configs."""

    number: int
    cfg: RunConfig
    trail: RunState
    adapter: ExtractedAdapter
    optimizer: torch.optim.Optimizer
    subject: ObservedModel

    def clip(self) -> Tensor:
        """Clip this adapter's gradients as its config says; their norm before that, a scalar."""
        return torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.cfg.clip_norm or math.inf)

    def update(self, step: int) -> None:
        """Make the optimiser's step ``step`` (from 0)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.rate_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad()


class BatchedTrainer:
    """``configs``, by their numbers in the race, that agree in model, task, steps, batch size and device."""

    def __init__(self, configs: Mapping[int, RunConfig], desk: RunReporter) -> None:
        self.configs, self.desk = configs, desk
        self.shared = next(iter(configs.values()))
        self.device = run_device(self.shared)
        self.trails: dict[int, RunState] = {}
        self.alone: list[int] = []  # those that turn out not to share a base

    def run(self) -> list[int]:
        """Train and measure them, each run going to the desk; the numbers of those that have to run alone."""
        try:
            self._run()
            return self.alone
        except CannotBatch:
            return list(self.configs)
        except Exception as error:
            if not is_out_of_memory(error):  # what was trained is kept, as alone, and the error is heard
                self._fail(f"{type(error).__name__}: {error}", [i for i in self._unfinished() if self._begun(i)])
                raise
        release_memory()  # here the frames that held the model are gone
        for i in self._unfinished():
            self.trails.setdefault(i, RunState())
        unfinished = self._unfinished()
        self._fail(training.memory_advice(self.shared, self.device, together=len(unfinished)), unfinished)
        return self.alone

    def _unfinished(self) -> list[int]:
        return [i for i in self.configs if i not in self.alone and i not in self.desk.runs]

    def _begun(self, number: int) -> bool:
        return number in self.trails and bool(self.trails[number].steps)

    def _fail(self, why: str, numbers: Sequence[int]) -> None:
        """Hand in these runs, with the reason why they have not ended."""
        for i in numbers:
            self.trails[i].error = why
            self._deliver(i, self.trails[i])

    def _deliver(self, number: int, trail: RunState) -> None:
        self.desk.take(number, trail.run(self.configs[number], self.device))

    def _run(self) -> None:
        accelerator = make_accelerator(self.device)
        if accelerator.num_processes > 1:
            raise CannotBatch("several processes share the batches of a run")
        run = resolve(self.shared)
        task = run.task
        base, tokenizer = load_base(run)
        limits = token_limit(self.shared, base, tokenizer), position_limit(base, tokenizer)
        data = Data(self.shared, task, tokenizer, *limits)
        stack, adapters = self._build(base)
        for lane_trail in self.trails.values():
            lane_trail.note_cut(data)
        stack.to(accelerator.device)
        lanes = [self._lane(number, adapter, stack) for number, adapter in adapters.items()]
        for lane in lanes:
            raise_if_stopped(self.desk.over)
            with stack.solo(lane.adapter):
                lane.trail.metrics["step0_change"] = training.first_change(stack, data, None)
        feed = SeededBatches(data, [lane.cfg for lane in lanes])
        track = BatchedPasses(accelerator, accelerator.prepare(stack), feed, PeakMemory(self.device.kind))
        try:
            stopped = self._train(track, lanes)
        finally:
            for lane in lanes:
                lane.trail.peak_memory = track.memory.bytes
        self._measure(track, lanes, data, stopped)

    def _build(self, base: Any) -> tuple[BatchedModel, dict[int, ExtractedAdapter]]:
        """The base, and the numbers of every adapter, built just as for a run alone."""
        adapters: dict[int, ExtractedAdapter] = {}
        for i, cfg in self.configs.items():
            raise_if_stopped(self.desk.over)
            model, _ = building.build(cfg, 0)
            try:
                adapters[i] = ExtractedAdapter(model, base)
            except CannotBatch:
                self.alone.append(i)
                continue
            self.trails[i] = RunState(trainable=trainable_parameters(model), revision=revision_of(base))
        places = [adapter.layers for adapter in adapters.values()]
        common = max(places, key=places.count, default=None)
        for i in [i for i, adapter in adapters.items() if adapter.layers != common]:
            self.alone.append(i)
            del adapters[i], self.trails[i]
        if len(adapters) < 2:
            raise CannotBatch("there is nobody to share the base with")
        for trail in self.trails.values():
            trail.together = len(adapters)
        return BatchedModel(base, list(adapters.values())), adapters

    def _lane(self, number: int, adapter: ExtractedAdapter, stack: BatchedModel) -> AdapterRun:
        cfg = self.configs[number]
        adapter.to(stack.device)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
        return AdapterRun(number, cfg, self.trails[number], adapter, optimizer, ObservedBatchedAdapter(stack, adapter))

    def _train(self, track: BatchedPasses, lanes: list[AdapterRun]) -> bool:
        """The loop. Lanes that diverge leave ``lanes`` and are delivered; whether the rest were stopped on the way."""
        clock, stopped = SharedClock(), False
        track.stack.train()
        try:
            for number, batches in enumerate(track.feed, start=1):
                track.backward(number, lanes, batches, self.desk.over)
                for lane in lanes:
                    if self.desk.watch is not None:
                        self.desk.watch(lane.cfg, number - 1, lane.subject)
                for lane in lanes:
                    if not lane.trail.diverged:
                        lane.update(number - 1)
                clock.share(lanes)
                for lane in [lane for lane in lanes if lane.trail.diverged]:
                    lanes.remove(lane)
                    self._lay_down(lane, track)
                for lane in lanes:
                    self.desk.step(lane.cfg, lane.trail.steps[-1])
                clock.share(lanes)
                if not lanes or self.desk.over():
                    stopped = number < self.shared.steps
                    break
        except KeyboardInterrupt:
            self.desk.stopped = stopped = True
            for lane in lanes:
                lane.optimizer.zero_grad()  # of a step that was not made
            clock.share(lanes)
        return stopped

    def _measure(self, track: BatchedPasses, lanes: list[AdapterRun], data: Data, stopped: bool) -> None:
        for lane in lanes:
            lane.trail.weights = lane.adapter.weights()  # of all, before anything can end the measuring
        for lane in lanes:
            stopped = stopped or self.desk.should_stop()
            lane.trail.stopped = stopped and not lane.trail.diverged
            try:
                if not lane.trail.diverged:
                    lane.subject.ended = True
                    with track.stack.solo(lane.adapter):
                        if self.desk.watch is not None:
                            self.desk.watch(lane.cfg, len(lane.trail.steps), lane.subject)
                        training.finish(lane.trail, track.stack, data, lane.subject, self.desk.should_stop)
                    track.memory.look()
                    stopped = lane.trail.stopped  # perhaps while it was measured
                    self.desk.stopped = self.desk.stopped or stopped
            except KeyboardInterrupt:
                self.desk.stopped = stopped = lane.trail.stopped = True
            self._lay_down(lane, track)

    def _lay_down(self, lane: AdapterRun, track: BatchedPasses) -> None:
        """Hand in the run of a lane that is done."""
        lane.trail.weights, lane.trail.peak_memory = lane.adapter.weights(), track.memory.bytes
        self._deliver(lane.number, lane.trail)


@dataclass(frozen=True)
class BatchedPasses:
    """What a heat runs on: the base with its stacked layers, the batches, and what is measured on the way."""

    accelerator: Accelerator
    stack: BatchedModel
    feed: SeededBatches
    memory: PeakMemory

    def backward(
        self, number: int, lanes: Sequence[AdapterRun], batches: Mapping[int, Batch], should_stop: StopCheck
    ) -> None:
        """Give every lane its gradients, clipped, and its trail the step ``number``, whether finite or not.

        ``should_stop`` is asked between lanes that do not go through the model at once: with many, a step takes seconds.
        """
        # neighbours of one width are multiplied together
        lanes = sorted(lanes, key=lambda lane: lane.adapter.width)
        losses = []
        for some in self._at_once(lanes, batches):
            raise_if_stopped(should_stop)
            losses.append(self._losses(some, self.feed.join(batches, some)))
            self.memory.look()
        norms = torch.stack([lane.clip() for lane in lanes])
        seen = torch.stack([torch.cat(losses), norms]).tolist()  # the one moment a step waits for a GPU
        for lane, loss, norm in zip(lanes, *seen, strict=True):
            lane.trail.add(Step(number, loss, lane.cfg.rate_at(number - 1), norm))

    def _at_once(self, lanes: Sequence[AdapterRun], batches: Mapping[int, Batch]) -> Iterator[Sequence[AdapterRun]]:
        largest = max(batch["input_ids"].numel() for batch in batches.values())
        size = max(1, CPU_TOKENS // largest) if self.stack.device.type == "cpu" else len(lanes)
        for start in range(0, len(lanes), size):
            yield lanes[start : start + size]

    def _losses(self, lanes: Sequence[AdapterRun], batch: Batch) -> Tensor:
        """The lanes' losses (K,) on their parts of ``batch`` (K·B, T), after the backward pass from all of them."""
        batch = {key: value.to(self.stack.device) for key, value in batch.items()}
        labels = batch.pop("labels")
        half = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        with self.stack.running([lane.adapter for lane in lanes], half):
            logits = self.stack(**batch, use_cache=False).logits
            losses = mean_losses(logits, labels, len(lanes))
            self.accelerator.backward(losses.sum())  # none depends on another's factors
        return losses.detach()


class SeededBatches:
    """The batches of a run for every seed among ``configs``, step by step."""

    def __init__(self, data: Data, configs: Sequence[RunConfig]) -> None:
        rows = data.training
        orders = {c.seed: BatchOrder(len(rows.rows), c.steps, c.batch_size, c.seed) for c in configs}
        self._loaders = {seed: training_batches(rows, data.tokenizer, order) for seed, order in orders.items()}
        self._fill = Collate(int(data.tokenizer.pad_token_id)).fill

    def __iter__(self) -> Iterator[dict[int, Batch]]:
        for batches in zip(*self._loaders.values(), strict=True):
            yield dict(zip(self._loaders, batches, strict=True))

    def join(self, batches: Mapping[int, Batch], lanes: Sequence[AdapterRun]) -> Batch:
        """Each lane's batch (B, T) below the one before, padded to the longest: (K·B, T)."""
        own = [batches[lane.cfg.seed] for lane in lanes]
        longest = max(batch["input_ids"].shape[1] for batch in own)
        return {
            key: torch.cat([F.pad(b[key], (0, longest - b[key].shape[1]), value=fill) for b in own])
            for key, fill in self._fill.items()
        }


class SharedClock:
    """Shares out the time: what has passed since it was last asked goes to those who ran, in equal parts."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def share(self, lanes: Sequence[AdapterRun]) -> None:
        """Add to the seconds of ``lanes``."""
        now = time.perf_counter()
        for lane in lanes:
            lane.trail.seconds += (now - self._last) / len(lanes)
        self._last = now


def mean_losses(logits: Tensor, labels: Tensor, adapters: int) -> Tensor:
    """Transformers' mean cross-entropy of the next token, for each adapter's part: (adapters,).

    logits (K·B, T, V), labels (K·B, T) with :data:`nlora_lab.tasks.batches.IGNORED` where nothing is asked.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    counted = (targets != IGNORED).view(adapters, -1).sum(1)
    return each.view(adapters, -1).sum(1) / counted
