# Two commands to start with: `make demo` and `make test`. Everything is installed into .venv.

.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -m uv
SOURCES := openmarkets_provider tests example_dags docs dev noxfile.py

# If it is set, as in many images, each process compiles all of Airflow again.
export PYTHONDONTWRITEBYTECODE :=

# System packages that the tests need, each with a file that it installs.
SYSTEM := postgresql=/usr/lib/postgresql/*/bin/initdb mariadb-server-core=/usr/sbin/mariadbd redis-server=/usr/bin/redis-server chromium=/usr/bin/chromium

FUZZ_MINUTES ?= 5
SOAK_ORDERS ?= 1000

# Prints the names of the direct dependencies, including extras.
define DIRECT
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*{re.match("[A-Za-z0-9-]+", each)[0] for each in sum(project["optional-dependencies"].values(), project["dependencies"])})
endef
export DIRECT

.PHONY: help coverage fuzz soak-orders demo ui screenshots test slow-half quick-half test-nightly test-ui test-matrix smoke unit lint format bench docs constraints version release audit clean system

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | while read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

demo: .venv/demo ## run example DAGs in a real Airflow against the sandbox; demo_output/ has the results
	$(BIN)/python -m dev.demo

ui: .venv/installed ## run Airflow with the example DAGs and the sandbox until Ctrl-C; DAGS=folder adds your DAGs
	$(BIN)/python -m dev.ui $(if $(DAGS),--dags "$(DAGS)")

# The two halves mostly wait, so they run in parallel.
test: .venv/installed system ## run all tests but the longest; the output of the slow ones and of those in a real Airflow comes last
	$(MAKE) --no-print-directory --jobs=2 --keep-going slow-half quick-half; \
		status=$$?; cat slow-tests.log; exit $$status

slow-half:
	@$(BIN)/python -m pytest -m "(airflow or slow) and not nightly and not ui" >slow-tests.log 2>&1

quick-half:
	@$(BIN)/python -m pytest -m "not airflow and not slow"

test-nightly: .venv/installed system ## run the tests that take too long for every change
	$(BIN)/python -m pytest -m nightly

test-ui: .venv/installed system ## run all tests of Airflow's pages in Chromium, and look for secrets in everything that a run leaves
	$(BIN)/python -m pytest tests/airflow/test_ui.py tests/airflow/test_orders.py

test-matrix: .venv/installed system ## run the tests on every supported Airflow, and print a table
	$(BIN)/nox --tags matrix

smoke: .venv/installed system ## run the main job in a real Airflow 2.11
	$(BIN)/nox --error-on-missing-interpreters --session "tests(python='3.11', airflow='2.11')" -- tests/airflow/test_smoke.py

unit: .venv/installed system ## run the tests that need no running Airflow
	$(BIN)/python -m pytest -m "not airflow"

coverage: .venv/installed system ## list the lines that the tests of make unit miss; takes long
	$(BIN)/python -m coverage run -m pytest -m "not airflow"
	$(BIN)/python -m coverage report

fuzz: .venv/installed ## fuzz everything that parses outside data, each target for FUZZ_MINUTES
	$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

soak-orders: .venv/installed ## place SOAK_ORDERS orders in processes that are killed at random, and count them in the sandbox
	$(BIN)/python -m dev.soak_orders --orders $(SOAK_ORDERS)

lint: .venv/installed ## check format, rules, types, layers, dependencies and the English of the pages
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python -m dev.prose

format: .venv/installed ## format, and fix what ruff can fix
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

screenshots: .venv/installed system ## take pictures of Airflow's pages into screenshots/, and update those in docs/images/
	mkdir -p screenshots
	OPENMARKETS_PICTURES=screenshots $(BIN)/python -m pytest tests/airflow/test_ui.py tests/airflow/test_orders.py
	for image in docs/images/*.png; do cp "screenshots/$${image##*/}" docs/images/ || exit 1; done

bench: .venv/installed system ## run the benchmark, which measures pairs and prints ratios
	$(BIN)/python -m dev.bench

docs: .venv/installed ## write docs/queries.md from the code, and build the site: docs/_build/html/index.html
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -EW --keep-going -q -j auto -b html -d docs/_build/doctrees -c docs . docs/_build/html

constraints: .venv/installed ## update the pinned versions
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --python-version 3.11 \
		--group dev --all-extras --output-file constraints.txt pyproject.toml
	for older in $(basename $(wildcard constraints/*.in)); do $(UV) pip compile --quiet --universal --upgrade \
		--no-header --no-annotate --python-version 3.11 --group pyproject.toml:test --group pyproject.toml:demo \
		--all-extras --output-file $$older.txt pyproject.toml $$older.in || exit 1; done

version: .venv/installed ## set the version of the next release: make version VERSION=0.2.0
	$(BIN)/hatchling version "$(VERSION)"

# The wheel is built from the sdist and from the tree; both must have the same bytes. Then it is tested without this folder.
release: .venv/installed ## build the last commit into dist/, check it, and install it in a clean environment
	@test -z "$$(git status --porcelain)" || { echo "Commit or remove what git status lists."; exit 1; }
	@grep -q "^## $$($(BIN)/hatchling version) " CHANGELOG.md || { echo "CHANGELOG.md has no section for this version."; exit 1; }
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --outdir dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --wheel --outdir dist/again
	cmp dist/*.whl dist/again/*.whl && rm -r dist/again
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents --toplevel openmarkets_provider dist/*.whl
	$(UV) venv --quiet dist/clean && $(UV) pip install --quiet --python dist/clean --constraint constraints.txt dist/*.whl
	cd dist && AIRFLOW_HOME=$$PWD/clean clean/bin/airflow providers get airflow-provider-openmarkets
	rm -r dist/clean

# A private package index may have no advisories, so this uses OSV.
audit: .venv/installed ## check the licences of what the package needs, and known advisories about all that is installed
	$(BIN)/pip-licenses --from mixed --partial-match --allow-only "Apache;BSD;ISC;MIT;PSF" --packages $$($(BIN)/python -c "$$DIRECT")
	$(BIN)/pip-audit --local --skip-editable --vulnerability-service osv

system: ## install the system packages that the tests need, or say which are missing
	@missing=""; for part in $(SYSTEM); do ls $${part#*=} >/dev/null 2>&1 || missing="$$missing $${part%%=*}"; done; \
		if [ -z "$$missing" ]; then exit 0; fi; \
		if [ "$$(id -u)" != 0 ]; then echo "The tests need more of the system. As root: apt-get install$$missing"; exit 1; fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

clean:
	rm -rf .venv .nox dist demo_output screenshots slow-tests.log docs/_build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Installs only what the demo needs, unless everything is installed.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@test -e .venv/installed || { $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && \
		$(UV) pip install --quiet --constraint constraints.txt --group demo --editable '.[sandbox,parquet,sql]'; }
	@touch $@

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) pip install --quiet --constraint constraints.txt --group dev --editable '.[sandbox,parquet,sql,zstd,redis,s3,delta,iceberg]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; \
		else echo "Python's venv module is needed: apt-get install python3-venv"; exit 1; fi; }
