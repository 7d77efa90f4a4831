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
# What would be uploaded: the source distribution, the wheel that is built of it, and how the index shows them.
rm -rf build/dist
check python -m build --no-isolation --outdir build/dist .
check twine check --strict build/dist/*
exit "$failed"
