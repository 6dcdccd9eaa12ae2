# Two commands on a new machine: make setup, make demo. Everything else: make help
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup tools engine-up engine-down images images-tests fmt lint type test-unit test check demo up dev bench chaos rehearse-upgrade clean

BIN := .venv/bin
STAMP := .venv/.stamp
PROJECTS := $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
IMAGES := $(BIN)/python scripts/images.py
WITH_ENGINE := scripts/with-engine.sh
# Each run of pytest in seconds. INT lets it end its fixtures and print its summary.
TEST_DEADLINE := 1800
PYTEST := timeout --foreground -s INT -k 30 $(TEST_DEADLINE) $(BIN)/pytest
PYTEST_FLAGS ?=
# Of the fault run; power is the other durability.
SECONDS ?= 600
SEED ?= 1
DURABILITY ?= process
# The commit that a rehearsed upgrade starts from; empty is the one before this.
OLD ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with all packages and tools
$(STAMP): constraints.txt requirements-dev.txt $(PROJECTS)
	@scripts/venv.sh && touch $@

tools: ## build nats, kustomize, kubeconform; unpack nginx, prometheus (into .tools/bin)
	@scripts/tools.sh

engine-up: ## start a private Docker engine, unless one answers
	@scripts/engine.sh up

engine-down: ## stop the private Docker engine; its images stay
	@scripts/engine.sh down

images: $(STAMP) ## build the images of the tool servers
	@$(WITH_ENGINE) $(IMAGES)

images-tests: $(STAMP) ## build also the images that only the tests use
	@$(WITH_ENGINE) $(IMAGES) --with-tests

fmt: $(STAMP) ## format the code and repair what ruff can repair
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

lint: $(STAMP) ## check format, code and import directions
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports

type: $(STAMP) ## check types, strictly
	@$(BIN)/mypy

test-unit: $(STAMP) ## run the fast tests, which need no Docker
	@$(BIN)/pytest tests/unit -n auto $(PYTEST_FLAGS)

# Whole systems one after the other, as each fills the machine; then what needs no Docker, side by side.
test: $(STAMP) tools ## run all tests
	@$(WITH_ENGINE) sh -c '$(IMAGES) --with-tests && $(PYTEST) tests/integration tests/e2e tests/chaos tests/rehearsal $(PYTEST_FLAGS) && $(PYTEST) tests/unit tests/contract -n auto $(PYTEST_FLAGS)'

check: lint type test ## everything that must pass before a commit

demo: $(STAMP) ## show the product at work, then leave nothing running
	@$(WITH_ENGINE) sh -c '$(IMAGES) && exec $(BIN)/python -m standalone demo'

up: $(STAMP) ## run everything on this machine until Ctrl-C
	@$(WITH_ENGINE) sh -c '$(IMAGES) && exec $(BIN)/python -m standalone up'

dev: ## build, deploy and follow changes on the cluster of kubectl's context (needs skaffold)
	@exec skaffold dev

bench: $(STAMP) ## measure calls, output, conversations and ten thousand sessions (benchmarks/README.md)
	@$(WITH_ENGINE) sh -c '$(IMAGES) --with-tests && $(BIN)/python -m benchmarks.call && $(BIN)/python -m benchmarks.conversations && $(BIN)/python -m benchmarks.output && exec $(BIN)/python -m benchmarks.sessions'

chaos: $(STAMP) ## kill, freeze and cut everything under load, then count (SECONDS, SEED, DURABILITY)
	@$(WITH_ENGINE) sh -c '$(IMAGES) --with-tests && exec $(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --durability $(DURABILITY)'

rehearse-upgrade: $(STAMP) ## roll gateways and workers to this code and back under load, then count (OLD)
	@$(WITH_ENGINE) sh -c '$(IMAGES) --with-tests && exec $(BIN)/python -m tests.rehearsal $(if $(OLD),--old $(OLD))'

clean: ## stop the engine and remove everything that was made
	@scripts/engine.sh down --purge
	@rm -rf .venv .run .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis && find . -name .git -prune -o '(' -name __pycache__ -o -name '*.egg-info' ')' -prune -exec rm -rf {} +
