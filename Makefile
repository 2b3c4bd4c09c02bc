# Every target sets up what it needs, once: a virtual environment with the tested versions. Nothing but Python 3.11+, make and a package index is assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-full lint bench clean

help:
	@echo "make demo       align a small model against two references and open the report (about five minutes)"
	@echo "make test       the tests (minutes)      make test-full   the slow ones too"
	@echo "make lint       format, undefined names, types, import contracts"
	@echo "make bench      every benchmark, each printing a ratio against a named peer"

setup: $(READY)

# torch first and alone: any other order lets the resolver fetch a GPU build of several gigabytes.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "multiref needs Python 3.11 or newer, found %s: make PYTHON=python3.11 …" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,trl]"
	@touch $@

demo: $(READY)
	$(BIN)/multiref demo --output runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-full: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
