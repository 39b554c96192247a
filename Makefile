# Everything a newcomer needs: make run, make test, make demo. Needs Python 3.11 or newer; the rest is installed
# into .venv. PIP_ARGS goes to pip, for example to name an index of CPU-only torch wheels.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: run test demo check bench format genome clean
.DEFAULT_GOAL := run

run: $(VENV)/.run ## start the daemon with the default genome
	$(BIN)/python -m server

test: $(VENV)/.dev ## run every test, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(VENV)/.dev ## a daemon lives through Python's standard library, then answers
	$(BIN)/python -m examples.demo

check: $(VENV)/.dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench ## measure every promise; about nine minutes
	for script in step meta_step ingest recall startup scaling retrieval; do $(BIN)/python -m benchmarks.$$script || exit 1; done

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

genome: $(VENV)/.run ## train both genomes anew, the default one from five seeds; see checkpoints/README.md
	$(BIN)/python -m organism.meta_train --preset daemon --seeds 5 --out checkpoints/default.genome
	$(BIN)/python -m organism.meta_train --preset continual --seeds 5 --out checkpoints/continual.genome

clean:
	rm -rf $(VENV) lab organism/__pycache__ server/__pycache__ .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "organism needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,lab,peers]'
	@touch $@

$(VENV)/.bench: $(VENV)/.run pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[bench]'
	@touch $@
