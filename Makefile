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

# Both runs end, so that both summaries are printed, whichever fails.
test: $(INSTALLED) ## Run all tests, then the end-to-end ones again on grpcio's server
	@first=0; second=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile || first=$$?; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --transport grpcio tests/e2e || second=$$?; \
	echo "pytest ended with $$first, and on grpcio's server with $$second"; \
	exit $$((first || second))

check: $(INSTALLED) ## Format, lint, types, architecture rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .
	@$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(INSTALLED) ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Print the table of costs and write bench.json (12 minutes at most)
	@$(BIN)/python -m tests.bench

lock: ## Resolve pyproject.toml into requirements.lock
	@$(PYTHON) -m pip install --quiet --target $(UV) uv
	@$(UV)/bin/uv pip compile pyproject.toml --extra embedded --extra dev --generate-hashes --universal \
	    --python-version 3.11 --no-annotate --no-header --no-emit-index-url --upgrade -o requirements.lock

clean: ## Remove the environment and the state of `make run`
	rm -rf $(VENV) .run .cache

# Atheris is no part of $(VENV); what is compared with has the versions of the lock.
FUZZ := .cache/fuzz-venv
INPUTS ?= 100000
TARGET ?= huffman headers frames connection messages

$(FUZZ)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -m venv --clear --without-pip $(FUZZ)
	@$(PYTHON) -m pip --python $(FUZZ)/bin/python install --quiet --disable-pip-version-check \
	    $$(grep -oE '^(h2|hpack|hyperframe)==[0-9.]+' requirements.lock) $$(grep -oE 'atheris==[0-9.]+' pyproject.toml)
	@touch $@

.PHONY: fuzz
fuzz: $(FUZZ)/.installed ## Fuzz HTTP/2 and HPACK with Atheris: TARGET=frames INPUTS=1000000
	@for target in $(TARGET); do nice -n 15 $(FUZZ)/bin/python -m tests.fuzz $$target --inputs $(INPUTS) || exit 1; done
