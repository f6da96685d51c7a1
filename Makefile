# make run   serve on 127.0.0.1:8000 (on the built-in stand-in upstream while there are no keys)
# make test  install what the tests need, and run them
# make clients-doc write balancer/docs/clients.md from what the clients do now
# make check what CI runs: format, lint, types, import contracts, tests
# make fix   format, and mend what the linter can
# make bench measure (minutes; prints one table)

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= config.yaml
BIN    := $(VENV)/bin

.PHONY: run test clients clients-doc check fix bench clean
.DELETE_ON_ERROR:

# Debian splits ensurepip off into python3-venv; without it, virtualenv does as well.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make run PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m virtualenv -q $(VENV) 2>/dev/null; } || { rm -rf $(VENV); uv venv -q --seed $(VENV) 2>/dev/null; } \
	|| { rm -rf $(VENV); echo "No virtual environment can be made: install python3-venv, or virtualenv, or uv, and call make again"; exit 1; }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run $(VENV)/.test

# Exit code 3 of check-config: valid, but no keys. Only then the stand-in takes the provider's place.
run: $(VENV)/.run
	@$(BIN)/balancer check-config --config $(CONFIG) --quiet; case $$? in \
	  0) exec $(BIN)/balancer serve --config $(CONFIG) ;; \
	  3) exec $(BIN)/balancer serve --config $(CONFIG) --stand-in ;; \
	  *) exit 2 ;; esac

# The programs of tests/clients, each in an environment of its own under .cache; what cannot be installed, pytest names.
clients: $(VENV)/.test
	@$(BIN)/python -m tests.clients.environments

clients-doc: clients
	$(BIN)/python -m tests.clients.guide

test: $(VENV)/.test clients
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

fix: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
