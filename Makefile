# Each target does its own set-up; the second call starts at once.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench schema coverage clean
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1
BIN := .venv/bin
PROCESSES ?= 2

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## make .venv from requirements.lock
	@infra/setup.sh

demo: setup ## build a dataset from a small web of our own, and check it against the truth
	@$(BIN)/espalier demo

test: setup ## all tests but the slow ones, in two processes and a random order, with coverage of catalog/, flows/ and tasks/
	@$(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --dist loadfile --cov --cov-report= $(ARGS)
	@$(BIN)/python -m coverage combine -q --keep --append >/dev/null 2>&1 || true
	@$(BIN)/python -m coverage report --include='catalog/*,flows/*,tasks/*' --fail-under=90 --skip-covered

test-slow: setup ## the slow tests: kills, the demo, training, the real img2dataset
	@$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

lint: setup ## ruff, codespell, mypy on code and tests, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

format: setup ## let ruff format and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## every benchmark, ours beside its peer; writes tests/benchmarks/results.json
	@$(BIN)/python tests/benchmarks/run.py

schema: setup ## write configs/recipe.schema.json, and the record of defaults that a test compares with
	@$(BIN)/espalier schema > configs/recipe.schema.json
	@$(BIN)/python -m tests.tasks.test_defaults

clean: ## remove everything that was made here
	rm -rf .venv .venv-fetch datasets build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
