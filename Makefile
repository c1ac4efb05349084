# Everything a contributor runs. The rest of the tools' settings is in pyproject.toml.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := -m pip --disable-pip-version-check --no-input -qq

# Two workers where there are cores for them. The tests do not need it.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(if $(filter-out 1,$(CORES)),-n 2 --dist worksteal)
PYTEST := $(BIN)/python -m pytest $(WORKERS)

NEW_ENOUGH := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))

.PHONY: help
help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: $(STAMP) ## Drain a made-up backlog with the real daemon; no account, no network
	@$(BIN)/chump-orchestrator demo

.PHONY: test
test: $(STAMP) ## Every check, then every test, of the faults each case once; skipped ones are named
	@$(MAKE) -j 2 lint types contracts docs
	@echo '== pytest'
	@FAULTS=short $(PYTEST)

.PHONY: lint
lint: $(STAMP) ## Style and formatting
	@echo '== ruff'
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || \
		{ echo 'Some files are not formatted: run `make format`.' >&2; exit 1; }

.PHONY: format
format: $(STAMP) ## Format, and mend what can be mended safely
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format --quiet

.PHONY: types
types: $(STAMP) ## Types, tests included
	@echo '== mypy'
	@$(BIN)/mypy

.PHONY: contracts
contracts: $(STAMP) ## Which way imports point
	@echo '== import-linter'
	@mkdir -p .build
	@$(BIN)/lint-imports --cache-dir .build/import-linter > .build/contracts.txt 2>&1 || \
		{ cat .build/contracts.txt >&2; exit 1; }
	@grep '^Contracts:' .build/contracts.txt

.PHONY: docs
docs: $(STAMP) ## The documentation, into .build/docs; warnings are errors
	@echo '== sphinx'
	@$(BIN)/sphinx-build -q -W --keep-going -d .build/doctrees -b html docs .build/docs

.PHONY: unit
unit: $(STAMP) ## The tests that take no more than moments
	@$(PYTEST) -m 'not slow'

.PHONY: faults
faults: $(STAMP) ## The fault catalogue alone, as a table; FAULT_SEEDS, FAULT_KILLS make it longer
	@$(PYTEST) -q -p tests.faults.catalogue tests/faults

.PHONY: soak
soak: $(STAMP) ## 2,000 dispatches, one in ten with a fault, and what has grown since; some ten minutes
	@$(BIN)/python -m tests.faults.soak --dispatches 2000

.PHONY: bench
bench: $(STAMP) ## Measurements beside their targets, in some 8 minutes; BENCH_JSON is where the figures go
	@$(BIN)/python -m tests.benchmarks $(if $(BENCH_JSON),--json $(BENCH_JSON))

.PHONY: coverage
coverage: $(STAMP) ## Lines and branches that the tests reach; needs Python 3.12 or newer
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
		echo 'Python 3.11 loses trace events after a cancellation: make coverage VENV=.venv-3.13' >&2; \
		exit 1; }
	@rm -rf .build/coverage && mkdir -p .build/coverage
	@$(BIN)/coverage run -m pytest -q
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage html -q
	@$(BIN)/coverage report

# Each version in a virtual environment of its own; those that are not installed are named.
.PHONY: matrix
matrix: ## The tests on each supported version of Python that is installed
	@failed=; \
	for version in 3.11 3.12 3.13 3.14; do \
		for python in "python$$version" $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
			"$$python" -c '' 2>/dev/null && break; python=; \
		done; \
		if [ -z "$$python" ]; then echo "== Python $$version: not installed"; continue; fi; \
		echo "== Python $$version ($$python)"; \
		$(MAKE) VENV=.venv-$$version PYTHON="$$python" ".venv-$$version/.installed" pytest \
			|| failed="$$failed $$version"; \
	done; \
	if [ -n "$$failed" ]; then echo "Failed on Python$$failed" >&2; exit 1; fi

.PHONY: pytest
pytest: $(STAMP)
	@$(PYTEST) -q

# One lock for every supported Python on Linux and macOS. It names no index: each machine has its
# own. uv is needed for this alone, so it has a place of its own.
.PHONY: lock
lock: $(STAMP) ## Renew requirements.lock, with everything as new as pyproject.toml allows
	@test -x .build/uv/bin/uv || { $(BIN)/python -m venv .build/uv && .build/uv/bin/python $(PIP) install uv; }
	@.build/uv/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-annotate --custom-compile-command 'make lock' \
		--group dev --output-file requirements.lock pyproject.toml > .build/lock.txt
	@echo "requirements.lock pins $$(grep -c '==' requirements.lock) packages"

.PHONY: clean
clean: ## Remove everything that was made here, virtual environments too
	@rm -rf .build .venv .venv-* .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
	@find chump_orchestrator tests docs -name __pycache__ -type d -exec rm -rf {} +

# Made again from nothing when the interpreter it stands on has gone.
$(STAMP): requirements.lock pyproject.toml
	@python=; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if "$$candidate" -c '$(NEW_ENOUGH)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'Python 3.11 to 3.14 is needed and none was found on PATH: make PYTHON=/path/to/python3' >&2; \
		exit 1; \
	fi; \
	if ! $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		echo "== $(VENV), from $$("$$python" --version)"; \
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$$python has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
			exit 1; \
		fi; \
		"$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@$(BIN)/python $(PIP) install --require-hashes -r requirements.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
