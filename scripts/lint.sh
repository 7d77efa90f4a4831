#!/bin/sh
# Check style, formatting and types: every check runs, and the script fails if any of them does.
set -u
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
failed=0

check() {
    echo "$*"
    "$bin/$@" || failed=1
}

check ruff check .
check ruff format --check .
check mypy
check lint-imports
check pyright --pythonpath "$bin/python"
exit "$failed"
