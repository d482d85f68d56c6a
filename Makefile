# Every target builds what it needs in .venv and is quick when run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test soak lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install, run three scripted agents on 40 real tasks, write a report"
	@echo "make test   install what the tests need and run them"
	@echo "make soak   the long tests: 1,000 tasks solved twice"
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

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
