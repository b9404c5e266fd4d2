# Every target makes .venv when none is there; stamp files keep a second run from installing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest -q

# First without an index: in an environment that already holds everything this takes seconds and no network.
define install
	$(BIN)/pip install --quiet --no-index --no-build-isolation -e '$(1)' -c constraints.txt 2>/dev/null \
		|| $(BIN)/pip install --disable-pip-version-check -e '$(1)' -c constraints.txt
	touch $@
endef

.PHONY: help install quickstart test test-all lint
help:
	@echo "make install      the package and its development tools into $(VENV)"
	@echo "make quickstart   train, evaluate and report on a small model (recipes/quickstart.yaml)"
	@echo "make test         the quick tests"
	@echo "make test-all     every test, the slow ones too"
	@echo "make lint         ruff, mypy, import-linter"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	touch $(BASE)

install: $(DEV)

quickstart: $(BASE)
	$(BIN)/mmreason train recipes/quickstart.yaml

test: $(DEV)
	$(PYTEST) -m "not slow"

test-all: $(DEV)
	$(PYTEST)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
