# Two commands, each complete on a machine with Python 3.10 to 3.13, git, make and a C++ compiler:
#   make quickstart    install into .venv and run the whole way once on real images
#   make test          install with the test extras and run style, types and the whole test suite
# Before a commit, make check runs style, types and the fast tests.
# PYTHON=/path/to/python chooses the interpreter.

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
# Byte-compiling PyTorch takes longer than everything else in the installation; Python does it as it goes, unless
# the environment forbids it, as container images often do: then every process would compile what it imports anew.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: quickstart install install-test test check lint types pytest stubs docs tutorial mutants wheel clean

quickstart: .venv/installed
	$(BIN)/sam-bench quickstart

# Is SAM a cheap substitute for adversarial training? The smallest scale shows how the question is answered.
reproduce: .venv/installed
	$(BIN)/sam-bench reproduce wei2023 --scale smoke

install: .venv/installed

install-test: .venv/installed-test

test: lint types pytest

# Before a commit. The folders are those whose tests take seconds; what takes longer in them is marked `slow`.
.PHONY: check fast
check: lint types fast
FAST := tests/rails tests/records tests/data tests/models tests/perturb tests/zoo $(wildcard tests/api) tests/test_*.py
fast: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow' --durations=5 $(FAST)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

# One thread a process: what runs side by side must not fight for the cores. One process more than there are cores, as
# the longest tests wait for processes of their own.
JOBS = $(shell $(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
pytest: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# How many small mistakes the tests would notice; by hand, it takes a while. MUTANTS='--count 200 --seed 1'
mutants: .venv/installed-test
	$(BIN)/python tests/mutants.py $(MUTANTS)

# The keywords of train, evaluate and sweep for editors and type checkers, from the specs.
stubs: .venv/installed-test
	$(BIN)/python -m sam_bench.api.stubs

# The site, into build/site. A warning, such as a dead link, is an error. To read it while you write: mkdocs serve
docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Runs the tutorial and stores its outputs in the notebook.
tutorial: .venv/installed-test
	$(BIN)/python -m nbconvert --to notebook --execute --inplace docs/tutorial.ipynb

wheel: .venv/installed-test
	$(BIN)/python -m build

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.13 found; install one or set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.10 to 3.13" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	@echo "installing sam-bench and what it needs into .venv (PyTorch is large: this can take minutes)"
	$(PIP) --upgrade pip
	$(PIP) --editable .
	touch $@

# torchattacks brings an old copy of robustbench that would overwrite the real one: it gets a folder of its own.
.venv/installed-test: setup.cfg pyproject.toml | .venv/installed
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps --upgrade --target .venv/torchattacks 'torchattacks==3.5.1'
	rm -rf .venv/torchattacks/robustbench
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
