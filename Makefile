# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -m uv
SOURCES := openmarkets_provider tests example_dags docs

.PHONY: demo test unit lint format bench docs constraints clean

demo: .venv/installed ## run the example DAG in a real Airflow against the sandbox
	$(BIN)/python -m tests.demo

test: .venv/installed ## run every test, those in a real Airflow too, and check the coverage
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report

unit: .venv/installed ## run the tests that need no running Airflow
	$(BIN)/python -m pytest -m "not airflow"

lint: .venv/installed ## check format, rules, types, layers and dependencies
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: .venv/installed ## format, and mend what can be mended by itself
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: .venv/installed ## measure, as ratios of pairs in one run
	$(BIN)/python -m tests.bench

docs: .venv/installed ## write docs/queries.md from the code
	$(BIN)/python docs/generate.py

constraints: .venv/installed ## resolve the pinned versions anew
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --python-version 3.11 \
		--group dev --all-extras --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) pip install --quiet --constraint constraints.txt --group dev --editable '.[sandbox,parquet,sql,zstd]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; \
		else echo "Python's venv module is needed: apt-get install python3-venv"; exit 1; fi; }
