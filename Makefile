# The commands of the project. Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := .cache/uv

.PHONY: help run test check format bench lock clean

help: ## Show these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# `venv --without-pip` and `pip --python` need neither python3-venv nor ensurepip, which Debian ships apart.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "Installing into $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(INSTALLED) ## Start the whole gateway on embedded servers (Ctrl-C ends it)
	@exec $(BIN)/inference-gateway up

test: $(INSTALLED) ## Run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(INSTALLED) ## Format, lint, types, architecture rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .
	@$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(INSTALLED) ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Print the table of costs and write bench.json (5 minutes at most)
	@$(BIN)/python -m tests.bench

lock: ## Resolve pyproject.toml into requirements.lock
	@$(PYTHON) -m pip install --quiet --target $(UV) uv
	@$(UV)/bin/uv pip compile pyproject.toml --extra embedded --extra dev --generate-hashes --universal \
	    --python-version 3.11 --no-annotate --no-header --no-emit-index-url --upgrade -o requirements.lock

clean: ## Remove the environment and the state of `make run`
	rm -rf $(VENV) .run .cache
