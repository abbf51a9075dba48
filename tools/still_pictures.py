"""Keep the picture of every widget in a stored notebook, and remove the widget itself.

The state of a widget ends with its kernel. JupyterLab prefers a widget to a picture, so a stored widget would show as
"Error displaying widget: model not found". Without it, every page shows the picture until the cell runs again.

    python -m tools.still_pictures notebooks/*.ipynb
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"


def keep_pictures(path: Path) -> int:
    """Remove the widget views from the outputs of a notebook that have a picture or a text beside them.

    Args:
        path: the notebook. It is written in the form of nbconvert, and only if something changes.

    Returns:
        The number of widget views that were removed.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    removed = [data.pop(WIDGET) for data in outputs if WIDGET in data and len(data) > 1]
    if removed:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(removed)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {keep_pictures(Path(name))} widgets removed")
