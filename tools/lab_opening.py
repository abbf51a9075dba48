"""Make in advance what the fine-tuning lab shows when it opens on the shipped runs, so that it need not read them all.

    python -m tools.lab_opening

Run it after the shipped runs, the table of methods or the figure of the lab have changed. A test fails until then.
"""

from __future__ import annotations

from dataclasses import asdict

from nlora_lab.labs.fine_tuning import FineTuneLab
from nlora_lab.pages.opening import write_opening

if __name__ == "__main__":
    lab = FineTuneLab()
    drawing = lab.drawing()
    print(f"written: {write_opening(lab.recordings, asdict(lab._view.settings), drawing.figure(), drawing.png())}")
