# `make demo` and `make test` are all that a new machine needs: they build the environment in .venv first.
SHELL := /bin/bash
# The first Python >= 3.12 that answers: by name, then what pyenv has installed though not selected, then what uv manages.
PYTHON := $(shell for p in python3.12 python3.13 python3.14 python3 python $$(pyenv root 2>/dev/null)/versions/*/bin/python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { command -v $$p; exit; }; done; \
  command -v uv >/dev/null && uv python find '>=3.12' 2>/dev/null)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo test test-all lint docs clean

.venv/ready: pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "probgen needs Python >= 3.12, and none was found on PATH."; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

demo: .venv/ready
	$(BIN)/probgen demo

test: .venv/ready lint
	$(PYTEST) -m "not slow"

test-all: .venv/ready lint
	$(PYTEST)

docs: .venv/docs
	$(BIN)/sphinx-build -W -j 2 -b html docs docs/_build

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv docs/_build
