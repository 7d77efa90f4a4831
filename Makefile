# Thin over scripts/: every target sets up what it needs, and does nothing where that is done.
#   ARGS=...    goes to pytest (make test) or to the benchmarks (make bench)
#   MINUTES=... how long to soak; default: 5
#   PYTHON=...  the interpreter for the virtual environment; default: the newest python3 found, 3.11 or newer
#   VENV=...    the virtual environment; default: .venv

VENV ?= .venv
ARGS ?=
MINUTES ?= 5
export VENV PYTHON

.DEFAULT_GOAL := help
.PHONY: help venv test tour lint format bench soak clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: ## Make the virtual environment with everything that tests and linters need
	@scripts/venv.sh test lint

test: ## Run the tests, with a real RabbitMQ; ARGS="..." goes to pytest
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m pytest $(ARGS)

tour: ## Run the first scenario; needs no broker
	@scripts/venv.sh test
	$(VENV)/bin/atasks run scenarios/tour.py

lint: ## Check style, formatting and types
	@scripts/venv.sh test lint
	@scripts/lint.sh

format: ## Format the code, and mend what the linter can mend
	@scripts/venv.sh test lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: ## Run the benchmarks, with a real RabbitMQ; ARGS="..." goes to them
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m benchmarks $(ARGS)

soak: ## Run random load under random faults for MINUTES=5, and check what happened; ARGS="--seed N" repeats
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

clean: ## Remove the virtual environment and what builds and tools left behind
	if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist .broker-logs* .cache .pytest_cache .mypy_cache .ruff_cache
