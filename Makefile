# Everything here works on a fresh clone with nothing but Python >= 3.11 and make: .venv is set up when a target first needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# npm and PyPI packages that the benchmarks compare with; none is needed to use or to test sona.
PEERS_NPM := @ruvector/sona@0.1.8
PEERS_PYPI := context-cite==0.0.4

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test crash check bench peers clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Written last, so an installation that broke off is begun again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,plots]'
	touch $@

demo: $(READY)  ## see a model learn from its own use
	$(BIN)/sona demo

test: $(READY)  ## run the tests
	$(BIN)/pytest

crash: $(READY)  ## kill and fault the store thousands of times; ARGS="--only NAME --times 2" and so on
	$(BIN)/python -m tests.crash $(ARGS)

# One recipe, so that it stops at the first failure and keeps its order under `make -j` too.
check: $(READY)  ## format, lint, types, layers, tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(READY)  ## measure, and write the report; ARGS="--data DIR --quick" and so on
	$(BIN)/python -m benchmarks $(ARGS)

peers: $(READY)  ## install what the benchmarks compare with
	npm install --prefix benchmarks/peers --no-save --no-package-lock $(PEERS_NPM)
	$(if $(strip $(PEERS_PYPI)),$(BIN)/python -m pip install -c constraints.txt $(PEERS_PYPI),@echo "no peers on PyPI")

clean:  ## remove what the other targets wrote, except .venv and the peers
	rm -rf build dist sona.egg-info sona-demo benchmarks/out htmlcov .coverage .coverage.* coverage.xml
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./.git -o -name node_modules \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
