# make demo, make test: both make .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=

.PHONY: help demo test check lint types layers format bench docs proto clean

help:
	@echo "make demo     train a click model on MovieLens-100K, into runs/movielens"
	@echo "make test     the whole suite; make test ARGS='-k rules' some of it"
	@echo "make check    lint, types and layers"
	@echo "make format   let ruff mend what it can"
	@echo "make bench    measure everything in docs/benchmarks.md; ARGS='tables --quick' some of it"
	@echo "make docs     build docs/_build/index.html, warnings as errors"
	@echo "make proto    write fleet_desc_pb2.py and .pyi from fleet_desc.proto"
	@echo "make clean    remove what the other targets made, but not .venv and not runs/"

demo: $(VENV)/.run
	$(BIN)/downpour train examples/movielens.py --out runs/movielens $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

check: lint types layers

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build

# A protoc of its own, not of .venv: docs/dependencies.md says why this one. It has wheels for Python
# 3.11 and 3.12 alone: make proto PYTHON=python3.12.
proto:
	@rm -rf build/protoc
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/python -m pip install --quiet --disable-pip-version-check \
		grpcio-tools==1.62.3 "setuptools<81"
	build/protoc/bin/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src \
		src/downpour/plan/fleet_desc/fleet_desc.proto
	@rm -rf build/protoc

clean:
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks docs -type d -name __pycache__ -prune -exec rm -rf {} +

# The environment. A stamp is as new as the last install of what it stands for.

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing Downpour into $(VENV), a few minutes the first time"
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing Downpour and its development tools into $(VENV), a few minutes the first time"
	$(PIP_INSTALL) "pip>=25.1"
	$(PIP_INSTALL) -e . --group dev
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.dev
	$(PIP_INSTALL) --group docs
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Downpour needs Python 3.11 or later; $(PYTHON) is %d.%d. Name another with make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
