# The verbs of this project; CI calls the same ones. VENV=... chooses the environment, args=... goes to the tool.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup check test bench serve

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c configs/constraints.txt -e '.[dev]'
	npm ci --prefix tests/clients/node --ignore-scripts

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test:
	$(BIN)/python -m pytest $(args)

bench:
	$(BIN)/python bench/overhead.py $(args)

serve:
	$(BIN)/flux-pulid serve --profile $(or $(profile),tiny) $(args)
