# The verbs of this project; CI calls the same ones. VENV=... chooses the environment, args=... goes to the tool.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup check test serve

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c configs/constraints.txt -e '.[dev]'

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test:
	$(BIN)/python -m pytest $(args)

serve:
	$(BIN)/flux-pulid serve --profile $(or $(profile),tiny) $(args)
