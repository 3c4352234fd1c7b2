# Everything here works on a machine that has only Python 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
SEED ?= 0
# Threads that wait without spinning: on a shared machine spinning ones are many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# A test file stays in one process: what its tests share is made once.
SPREAD := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help setup demo test test-all lint bench bench-gpu bench-convert clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## make the virtual environment and install everything into it

$(VENV)/.installed: setup.cfg constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "make: Python %d.%d found, 3.11 to 3.13 needed: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,quant,ray]'
	@touch $@

demo: setup ## raw data to fine-tuned adapter to hallucination report, in minutes
	@PATH="$(abspath $(BIN)):$$PATH" bash demo.sh "$(DEMO)" "$(SEED)"

test: setup ## the tests, about ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" $(SPREAD)

test-all: setup ## the tests and the long matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SPREAD)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## training and evaluation against TRL and transformers, same work, ratios
	$(BIN)/python -m benchmarks.train --runs 1
	$(BIN)/python -m benchmarks.steps --runs 1 --steps 1
	$(BIN)/python -m benchmarks.cached --runs 1 --pictures 64
	$(BIN)/python -m benchmarks.ask --runs 1

bench-gpu: setup ## training and evaluation at the shapes of real models; needs a GPU
	$(BIN)/python -m benchmarks.gpu --json gpu-figures.json

bench-convert: setup ## conversion against the ways of the write-ups; PHOTOS=FOLDER adds real photographs
	$(BIN)/python -m benchmarks.convert --memory $(if $(PHOTOS),--photos "$(PHOTOS)") --json convert-figures.json

clean: ## remove the virtual environment and caches; leaves demo/ alone
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
