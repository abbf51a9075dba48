# Two lines matter: `make lab` opens the lab, `make test` proves it. Both make .venv first.
#   TORCH=cpu    on Linux without an NVIDIA card: PyTorch's CPU build (200 MB instead of 3 GB)
#   PYTHON=...   another interpreter, 3.11 or newer
#   JOBS=...     number of test processes (default: one per core)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= default
JOBS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt
# single-threaded test processes: two of them do twice the work of one process with two threads
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

.DEFAULT_GOAL := help
.PHONY: help lab test check lint quick notebooks site models tasks tables clean

help:
	@echo "make lab        set up and open the lab"
	@echo "make test       set up and run every check"
	@echo "make quick      set up and run the checks for work in hand, in under two minutes"
	@echo "make notebooks  run the notebooks and store their outputs"
	@echo "make site       build the website in build/site, and check it"
	@echo "make tables     write what is made from the recorded runs: tables of the documents, the opening of the lab"
	@echo "make models     pretrain the two models that ship again (about an hour on two cores)"
	@echo "make tasks      generate the task files again"

lab: $(VENV)/.lab
	$(BIN)/nlora-lab lab

# lint needs one core, and the tests start while it runs
test: $(VENV)/.test
	$(MAKE) -j2 lint check

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

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# tests and notebooks in one run: both processes are busy until the end
check:
	$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=600 tests notebooks

quick: $(VENV)/.test
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow" tests

notebooks: $(VENV)/.test
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace --log-level=WARN \
	  --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False \
	  --ExecutePreprocessor.timeout=900 notebooks/*.ipynb
	$(BIN)/python -m tools.still_pictures notebooks/*.ipynb

site: $(VENV)/.site
	$(BIN)/python -m tools.website

tables: $(VENV)/.test
	$(BIN)/python -m tools.results_table --write
	$(BIN)/python -m tools.lab_opening

models: $(VENV)/.test
	$(BIN)/python -m tools.embedded_model embedded
	$(BIN)/python -m tools.embedded_model larger

tasks: $(VENV)/.test
	$(BIN)/python -m tools.write_tasks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
