# Thin over scripts/: every target sets up what it needs, and does nothing where that is done.
#   ARGS=...    goes to pytest (make test, make test-faults) or to the benchmarks (make bench, make bench-peers)
#   MINUTES=... how long to soak; default: 5
#   SECONDS=... how long to fuzz; default: 60
#   PYTHON=...  the interpreter for the virtual environment; default: the newest python3 found, 3.11 or newer
#   VENV=...    the virtual environment; default: .venv

VENV ?= .venv
ARGS ?=
MINUTES ?= 5
SECONDS ?= 60
export VENV PYTHON
# With it, each of the hundreds of processes that tests and benchmarks start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv test test-lowest test-faults tour lint format docs pictures bench bench-scale bench-peers bench-plot bench-guard soak fuzz clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: ## Make the virtual environment with everything that tests and linters need
	@scripts/venv.sh test lint

test: ## Run the tests, with a real RabbitMQ, but for those of make test-faults; ARGS="..." goes to pytest instead
	@scripts/venv.sh test
	@scripts/broker.sh
	@scripts/postgres.sh
	@scripts/browser.sh
	$(if $(ARGS),,@echo "All tests take about 10 to 17 minutes on two cores; ARGS=tests/unit runs some of them.")
	$(VENV)/bin/python -m pytest $(or $(ARGS),--numprocesses 6 --dist worksteal --ignore tests/faults)

test-lowest: ## Run the tests that touch dependencies, with the lowest versions of these that are allowed
	@scripts/broker.sh
	@scripts/postgres.sh
	@scripts/test-lowest.sh $(ARGS)

test-faults: ## Run the tests that kill workers, cut connections and restart brokers, and a minute's soak
	@scripts/venv.sh test
	@scripts/broker.sh
	@scripts/postgres.sh
	$(if $(ARGS),$(VENV)/bin/python -m pytest $(ARGS),scripts/test-faults.sh)

tour: ## Run the first scenario; needs no broker
	@scripts/venv.sh
	$(VENV)/bin/atasks run scenarios/tour.py

lint: ## Check style, formatting and types
	@scripts/venv.sh test lint
	@scripts/lint.sh

format: ## Format the code, and mend what the linter can mend
	@scripts/venv.sh test lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: ## Build the documentation site into build/site; a broken link, or a name that has no docstring, is an error
	@scripts/venv.sh docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --config-file scripts/site/mkdocs.yml
	@echo "Read build/site/index.html"

pictures: ## Draw the diagrams of docs/ again that have changed; needs chromium, and npm the first time
	@scripts/venv.sh test
	@scripts/browser.sh
	@scripts/site/pictures.sh

bench: ## Measure atasks, with a real RabbitMQ, in two minutes; ARGS="..." goes to the benchmarks
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m benchmarks $(ARGS)

bench-scale: ## Study atasks at its limits, for some minutes; ARGS="width memory" names studies
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m benchmarks.scale $(ARGS)

bench-peers: ## Measure atasks beside its peers, for several minutes, and write docs/benchmarks.json
	@scripts/venv.sh test
	@scripts/broker.sh
	@scripts/bench-redis.sh
	$(VENV)/bin/python -m benchmarks --systems all --uvloop --json docs/benchmarks.json $(ARGS)

bench-plot: ## Draw docs/benchmarks.json as docs/benchmarks.png
	scripts/bench-plot.sh docs/benchmarks.json docs/benchmarks.png

bench-guard: ## Has it become slower? Compare atasks with echoes, tasks and pools, in about a minute
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m benchmarks.guard

soak: ## Run random load under random faults for MINUTES=5, and check what happened; ARGS="--seed N" repeats
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

fuzz: ## Send hostile bytes to every decoder, a live worker and a live hub for SECONDS=60; ARGS="--seed N" for others
	@scripts/venv.sh test
	@scripts/broker.sh
	$(VENV)/bin/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

clean: ## Remove the virtual environment and what builds and tools left behind
	if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist .broker-logs* .cache .pytest_cache .mypy_cache .ruff_cache
