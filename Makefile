# Every target makes the virtual environment that it needs. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OLDEST_TRITON := 3.6.0
GATE_ARCHS := sm_80 sm_90

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-gpu tune lint generate compile-gate wheel-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with attnforge (editable) and the development tools

# Where there is a GPU, or a torch was put into the environment on purpose, pip chooses; else torch's CPU build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnforge needs Python 3.11 or newer: say make PYTHON=python3.12, for example")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v nvidia-smi >/dev/null || $(BIN)/python -c 'import torch' 2>/dev/null; \
	then $(BIN)/pip install --quiet --editable '.[dev]'; \
	else $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'; fi
	touch $@

test: install ## Run the tests that need neither a GPU nor minutes
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not slow'

test-slow: install ## Run the tests that take minutes
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu'

test-gpu: install ## Run the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

tune: install ## Tune the shipped kernels on this GPU; without one, predict configs for an A100 (sm_80)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/attnforge tune; \
	else echo 'torch sees no GPU: predicting configs for an A100 (sm_80); a tune on the GPU itself replaces them'; \
	     $(BIN)/attnforge tune --target sm_80 --quick; fi

lint: install ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

generate: install ## Rewrite generated/ from the templates, default configs and shipped tuned caches
	$(BIN)/attnforge generate

compile-gate: install $(VENV)/triton-$(OLDEST_TRITON)/.installed ## Compile the shipped defaults, with the installed and the oldest triton
	@failed=0; for path in '' $(abspath $(VENV)/triton-$(OLDEST_TRITON)); do for arch in $(GATE_ARCHS); do \
	  PYTHONPATH=$$path $(BIN)/attnforge compile --target $$arch || failed=1; \
	done; done; exit $$failed

$(VENV)/triton-$(OLDEST_TRITON)/.installed: | install
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) triton==$(OLDEST_TRITON)
	touch $@

wheel-check: install ## Build the wheel, and use it in a clean environment
	.ci/wheel-check $(BIN)/python

clean: ## Remove what the targets above have made, but for generated/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
