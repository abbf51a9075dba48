"""Make in advance what two labs show as they open: the runs that ship, and a matrix of the embedded model.

    python -m tools.lab_opening

Run it after the shipped runs, the table of methods, the embedded model or the figure of a lab have changed. Tests fail
until then.
"""

from __future__ import annotations

from dataclasses import asdict

from nlora_lab.labs.fine_tuning import FineTuneLab
from nlora_lab.labs.nystrom import NystromLab
from nlora_lab.pages.matrices import write_matrix
from nlora_lab.pages.opening import write_opening

if __name__ == "__main__":
    lab = FineTuneLab()
    drawing = lab.drawing()
    print(f"written: {write_opening(lab.recordings, asdict(lab._view.settings), drawing.figure(), drawing.png())}")
    print(f"written: {write_matrix(NystromLab().opening())}")
