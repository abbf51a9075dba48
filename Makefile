# Two lines matter: `make lab` opens the lab, `make test` proves it. Both make .venv first.
#   TORCH=cpu    on Linux without an NVIDIA card: PyTorch's CPU build (200 MB instead of 3 GB)
#   PYTHON=...   another interpreter, 3.11 or newer

PYTHON ?= python3
VENV ?= .venv
TORCH ?= default
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help lab test check notebooks model tasks clean

help:
	@echo "make lab        set up and open the lab"
	@echo "make test       set up and run every check"
	@echo "make notebooks  run the notebooks and store their outputs"
	@echo "make model      pretrain the embedded model again (about a quarter of an hour on two cores)"
	@echo "make tasks      generate the task files again"

lab: $(VENV)/.lab
	$(BIN)/nlora-lab lab

test: $(VENV)/.test
	$(MAKE) check

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nlora-lab needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: $(BIN)/python $(SOURCES)
	@echo "Installing into $(VENV): about 430 MB to download and 2 GB of disk, some minutes (PyTorch with CUDA: gigabytes more; see TORCH=cpu)"
ifeq ($(TORCH),cpu)
	$(PIP) install -q uv
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu -c constraints.txt -e ".[$*]"
else
	$(PIP) install -c constraints.txt -e ".[$*]"
endif
	touch $@

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

notebooks: $(VENV)/.test
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace --log-level=WARN \
	  --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False \
	  --ExecutePreprocessor.timeout=900 notebooks/*.ipynb

model: $(VENV)/.test
	$(BIN)/python -m tools.embedded_model --out data/embedded

tasks: $(VENV)/.test
	$(BIN)/python -c "from pathlib import Path; from nlora_lab.tasks import write_tasks; write_tasks(Path('data/tasks'))"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
