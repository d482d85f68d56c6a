# Every target builds what it needs in .venv and is quick when run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test soak test-pythons lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install, run three scripted agents on 40 real tasks, write a report"
	@echo "make test   install what the tests need and run them"
	@echo "make soak   the long tests: 1,000 tasks solved twice"
	@echo "make test-pythons   kernels of Python 3.12 and 3.13, and of ipykernel 6"
	@echo "make lint   ruff and mypy"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, renewed when pyproject.toml changes.
$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

demo: $(VENV)/installed-tables
	$(BIN)/jupyter-env demo

test: $(VENV)/installed-test
	$(PYTEST) -n auto

soak: $(VENV)/installed-test
	$(PYTEST) -m soak --timeout 3600

# Environments for kernels of other versions, where these Pythons are installed.
KERNEL_PACKAGES := numpy pandas matplotlib
.venv-ipykernel6/installed:
	$(PYTHON) -m venv .venv-ipykernel6
	.venv-ipykernel6/bin/python -m pip install --quiet 'ipykernel==6.31.*' $(KERNEL_PACKAGES)
	@touch $@

.venv-3.%/installed:
	python3.$* -m venv .venv-3.$*
	.venv-3.$*/bin/python -m pip install --quiet 'ipykernel>=7,<8' $(KERNEL_PACKAGES)
	@touch $@

test-pythons: $(VENV)/installed-test .venv-ipykernel6/installed .venv-3.12/installed .venv-3.13/installed
	$(PYTEST) -m pythons

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-* runs
