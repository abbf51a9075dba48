"""Write the task files that ship: ``python -m tools.write_tasks`` (or ``make tasks``)."""

from __future__ import annotations

from pathlib import Path

from nlora_lab.core.files import shipped_folder
from nlora_lab.tasks.generated import TASKS, generate, to_jsonl


def write_tasks(out: Path) -> None:
    """Write every task at its default difficulty to ``out/<task>/<split>.jsonl``."""
    for name in TASKS:
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, items in generate(name).items():
            (out / name / f"{split}.jsonl").write_text(to_jsonl(items), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_tasks(shipped_folder("data") / "tasks")
