# MarketFlow: `make help` lists the commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARTS := libs/common libs/simulator libs/stack libs/operator ingestor aggregator strategy executor notifier loader

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The environment: remade when the lock or a part's pyproject changes.
$(VENV)/.ready: requirements.lock $(PARTS:%=%/pyproject.toml) aggregator/hatch_build.py aggregator/src/marketflow_aggregator/_skim.c
	@$(PYTHON) -c 'import sys; sys.exit("MarketFlow needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 ...") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	@echo "setting up $(VENV) (once, about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/python -m uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/python -m uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation $(PARTS:%=-e ./%)
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Make the virtual environment

.PHONY: lock
lock: ## Resolve requirements.lock anew
	$(BIN)/python -m uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--group dev --group warehouse $(PARTS:%=%/pyproject.toml) --extra terraform \
		-o requirements.lock --no-emit-package marketflow-common --no-emit-package marketflow-stack \
		--custom-compile-command "make lock"

.PHONY: check
check: setup ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# More workers than cores: much of a test's time is waiting. A file stays on one worker, because its tests share what
# is slow to start; files keep their order, in which those that take longest come first. The checks, which keep one core
# busy for a minute, run beside the tests.
WORKERS ?= 4
.PHONY: test tests
test: setup ## All that CI checks: make check, and every test; WORKERS=4, PYTEST='-k words'
	@$(MAKE) --no-print-directory -j2 check tests

# Hundreds of processes are started: none is to compile the sources again, wherever bytecode is not written otherwise.
# What they write goes to memory where there are 8 GB of it, so that nobody waits for a disk that is busy with images of
# containers.
tests: export PYTHONDONTWRITEBYTECODE =
tests: export TMPDIR := $(or $(TMPDIR),$(shell test -w /dev/shm && ! grep -q ' /dev/shm .*noexec' /proc/mounts \
	&& test $$(df -Pk /dev/shm | awk 'END {print $$4}') -gt 8000000 && echo /dev/shm),/tmp)
tests: setup
	@$(BIN)/python -m compileall -q $(PARTS:%=%/src)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# Not in $(or ...), to which each comma begins another choice.
chaos: SEEDS ?= 101,102,103,104,105,106,107,108,109,110,111,112,113,114,115,116,117,118,119,120
.PHONY: chaos
chaos: setup ## Orders and the way to the warehouse through faults and kills, by twenty seeds (SEEDS=1,2,3); new examples of properties
	$(BIN)/pytest -q -n 2 --hypothesis-profile=explore */tests/unit libs/*/tests/unit tests/test_*_agree.py
	MARKETFLOW_CHAOS_SEEDS=$(SEEDS) \
		$(BIN)/pytest -n 2 executor/tests/integration/test_chaos.py loader/tests/integration/test_chaos.py

.PHONY: fix
fix: setup ## Format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --- the operator's commands; `marketflow --help` says more about each ---

.PHONY: demo
demo: setup ## The whole chain, watched and audited: REPLAY=file SPEED=60|max MINUTES=10 SYMBOLS=a,b SEED=7 REPORT=file.json
	@$(BIN)/marketflow demo $(if $(REPLAY),--replay '$(REPLAY)') $(if $(SPEED),--speed '$(SPEED)') \
		$(if $(MINUTES),--minutes '$(MINUTES)') $(if $(SYMBOLS),--symbols '$(SYMBOLS)') \
		$(if $(SEED),--seed '$(SEED)') $(if $(REPORT),--report '$(REPORT)')

.PHONY: live
live: setup ## Binance's public streams, no key, paper trading, the same view: SYMBOLS=a,b
	@$(BIN)/marketflow live $(if $(SYMBOLS),--symbols '$(SYMBOLS)')

.PHONY: up
up: setup ## Start the stack and leave it running: SPEED=1 SYMBOLS=a,b SEED=7
	@$(BIN)/marketflow up $(if $(SPEED),--speed '$(SPEED)') $(if $(SYMBOLS),--symbols '$(SYMBOLS)') \
		$(if $(SEED),--seed '$(SEED)')

.PHONY: status
status: setup ## What runs, where, and how it is
	@$(BIN)/marketflow status

.PHONY: logs
logs: setup ## Logs of the stack: SERVICE=executor, FOLLOW=1 to go on
	@$(BIN)/marketflow logs $(SERVICE) $(if $(FOLLOW),--follow)

.PHONY: down
down: setup ## Stop the stack; its data stays
	@$(BIN)/marketflow down

.PHONY: audit
audit: setup ## Compare exchange, topics, warehouse and notifications
	@$(BIN)/marketflow audit

# quixstreams pins other versions than ours, so this yardstick lives in an environment of its own.
.venv-bench/.ready: bench/yardsticks/requirements.txt | setup
	@echo "setting up .venv-bench for the bench's yardstick (once)"
	@test -x .venv-bench/bin/python || $(BIN)/python -m venv .venv-bench
	@$(BIN)/python -m uv pip install -q --python .venv-bench/bin/python -r $<
	@touch $@

.PHONY: bench
bench: setup .venv-bench/.ready ## How fast it is, beside yardsticks: BENCH='aggregator latency orders ingestor loader memory' REPORT=file.json RUNS=3 REPLAY=file
	@$(BIN)/python -m bench $(BENCH) $(if $(REPORT),--report '$(REPORT)') $(if $(RUNS),--runs '$(RUNS)') \
		$(if $(REPLAY),--replay '$(REPLAY)') $(if $(TRADES),--trades '$(TRADES)')

.PHONY: doctor
doctor: setup ## Whether this machine has what is needed
	@$(BIN)/marketflow doctor

.PHONY: clean
clean: ## Stop the stack and remove its data and logs (.marketflow)
	@if test -x $(BIN)/marketflow; then $(BIN)/marketflow down; fi
	rm -rf .marketflow
