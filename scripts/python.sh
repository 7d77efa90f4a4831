#!/bin/sh
# Print the Python interpreter to use: $PYTHON, else the first that runs, is 3.11 or newer and can make a
# virtual environment. A name on PATH proves nothing (a version manager's shim may only print an error), so each
# candidate is run.
set -eu

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! usable "$PYTHON"; then
        echo "PYTHON=$PYTHON does not run or is older than 3.11: name another interpreter." >&2
        exit 1
    fi
    echo "$PYTHON"
    exit
fi

found=
for candidate in python3.13 python3.12 python3.11 python3; do
    if usable "$candidate"; then
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            exit
        fi
        found=${found:-$candidate}
    fi
done
if [ -z "$found" ]; then
    echo "No Python 3.11 or newer was found: install one, or name it: make ... PYTHON=/path/to/python3" >&2
    exit 1
fi
echo "$found"
