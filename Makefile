# Two commands do everything: `make serve` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: help demo serve test lint types test-transformers-latest test-transformers-4.54 clean

help:  ## What each target does
	@grep -E '^[a-zA-Z0-9._-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 28

# Compiled with the package, where there is a compiler.
LIBRARIES = setup.py $(wildcard src/step3/kernels/cpu/*.cpp src/step3/kernels/cpu/*.h \
	src/step3/wire/native/*.cpp src/step3/wire/native/*.h)

# torch first and alone: nothing else may choose its build.
$(VENV)/.run: pyproject.toml constraints.txt $(LIBRARIES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing step3 into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) torch
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.run  ## Set up, draw a picture and let the bundled Step3 answer a question about it
	@$(BIN)/step3 demo

serve: $(VENV)/.run  ## Set up and serve the bundled model: a page at http://127.0.0.1:8000 and OpenAI's API
	@$(INSTALL) -e '.[server,structured]'
	@$(BIN)/step3 serve

test: $(VENV)/.dev lint types  ## Set up and run every check: format, lint, types, tests
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Format and lint
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(VENV)/.dev  ## Type check
	@$(BIN)/mypy

test-transformers-latest:  ## The network's tests on the newest Transformers 5.x
	@$(MAKE) --no-print-directory VENV=.venv-transformers-latest TRANSFORMERS='transformers>=5,<6' network-tests

test-transformers-4.54:  ## The network's tests on Transformers 4.54.0, which the model card names
	@$(MAKE) --no-print-directory VENV=.venv-transformers-4.54 TRANSFORMERS='transformers==4.54.0' network-tests

.PHONY: network-tests
network-tests:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch
	@$(INSTALL) --upgrade --upgrade-strategy only-if-needed -e '.[test]' '$(TRANSFORMERS)'
	@$(BIN)/python -c 'import transformers; print("Transformers", transformers.__version__)'
	@$(BIN)/python -m pytest tests/test_auto_classes.py tests/kernels tests/model tests/checkpoint tests/nano

clean:  ## Remove the environments and caches
	rm -rf src/step3/kernels/cpu/*.so .venv .venv-* .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
