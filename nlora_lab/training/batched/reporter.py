"""What a race tells its caller, and when the caller ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nlora_lab.core.interrupts import StopCheck
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, Step
from nlora_lab.training.layer_views import ObservedModel
from nlora_lab.training.session import OnTrained

OnStep = Callable[[RunConfig, Step], bool | None]
"""Called for every run after every step. Returning True ends the complete race and keeps what was trained."""

Watch = Callable[[RunConfig, int, ObservedModel], None]
"""Called with the config, the number of updates made so far and the adapter, at the moments of ``session.Watch``."""


@dataclass
class RunReporter:
    """Collects the runs of a race, passes events to the caller, and decides when to stop."""

    on_step: OnStep | None
    on_run: Callable[[Run], None] | None
    should_stop: StopCheck
    watch: Watch | None
    on_trained: OnTrained | None = None
    runs: dict[int, Run] = field(default_factory=dict)
    stopped: bool = False

    def is_over(self) -> bool:
        """Whether the caller wants the race to end."""
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def step(self, cfg: RunConfig, step: Step) -> bool:
        """Report a step. Return whether the race should end."""
        if self.on_step is not None and self.on_step(cfg, step):
            self.stopped = True
        return self.is_over()

    def finish(self, number: int, run: Run) -> None:
        """Keep the finished run of config ``number`` and report it."""
        self.runs[number] = run
        if self.on_run is not None:
            self.on_run(run)
