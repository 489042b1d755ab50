# make demo, make test: both make .venv when it is missing or out of date.
PYTHON ?= python3
# The URL of an index that has the torch you want, such as PyTorch's CPU wheel index.
TORCH_INDEX ?=
# "no": do not use the torch that $(PYTHON) has already.
SHARE_TORCH ?= yes
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
INSTALL := $(PIP_INSTALL) --quiet "pip>=25.1" packaging && $(BIN)/python tools/install.py \
	--torch-index "$(TORCH_INDEX)" $(if $(filter no,$(SHARE_TORCH)),,--python "$(PYTHON)")
ARGS ?=

.PHONY: help demo test check lint types layers format bench docs proto clean asked_python

help:
	@echo "make demo     train a click model on MovieLens-100K, into runs/movielens"
	@echo "make test     the whole suite; make test ARGS='-k rules' some of it"
	@echo "make check    lint, types and layers"
	@echo "make format   let ruff mend what it can"
	@echo "make bench    measure everything in docs/benchmarks.md; ARGS='tables --quick' some of it"
	@echo "make docs     build docs/_build/index.html, warnings as errors"
	@echo "make proto    write fleet_desc_pb2.py and .pyi from fleet_desc.proto"
	@echo "make clean    remove what the other targets made, but not .venv and not runs/"
	@echo
	@echo "With them, when .venv is made (remove it to make it again):"
	@echo "  PYTHON=python3.12    the Python it is made from; a torch that this has already is used"
	@echo "  SHARE_TORCH=no       but not then"
	@echo "  TORCH_INDEX=URL      take torch from there: PyTorch's CPU wheel index has a small one"

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

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip asked_python
	@echo "installing Downpour into $(VENV), a few minutes the first time"
	@$(INSTALL)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip asked_python
	@echo "installing Downpour and its development tools into $(VENV), a few minutes the first time"
	@$(INSTALL) --group dev
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.dev
	@$(INSTALL) --group docs
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Downpour needs Python 3.11 or later; $(PYTHON) is %d.%d. Name another with make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# An environment keeps the Python that it was made from: another that is asked for by name is refused.
asked_python: | $(BIN)/pip
ifneq ($(origin PYTHON),file)
	@$(BIN)/python -c 'import sys; has, asked = "%d.%d" % sys.version_info[:2], sys.argv[1]; has == asked or sys.exit(f"$(VENV) has Python {has}, and PYTHON=$(PYTHON) is {asked}: remove $(VENV) to make it again")' \
		"$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
endif
