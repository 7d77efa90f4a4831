#!/bin/sh
# Run the fast tests with the lowest versions of the dependencies that pyproject.toml allows, in an environment of
# their own. A bound that is too low is found here, and not by whoever has an old version installed.
set -eu
cd "$(dirname "$0")/.."
venv=.cache/lowest
stamp=$venv/installed
if ! [ -e "$stamp" ] || ! cmp -s pyproject.toml "$stamp"; then
    echo "Installing the lowest versions into $venv ..."
    "$(scripts/python.sh)" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
    # The dependencies of a program at their lowest, those of its tests as they are elsewhere.
    "$venv/bin/uv" pip compile --quiet --no-header --resolution lowest-direct pyproject.toml --extra progress \
        --extra reload --extra uvloop --extra zstd --python "$venv/bin/python" --output-file "$venv/lowest.txt"
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --constraint "$venv/lowest.txt" --editable ".[test]"
    cp pyproject.toml "$stamp"
fi
# Kinds of queues at the broker are the broker's business, and are the same with every client library; so are the two
# contracts of which the local transport and the loopback have the rest.
[ $# != 0 ] || set -- --numprocesses 4 --dist worksteal tests/unit tests/conformance \
    -k "not Quorum and not Encrypted and not Postgres and not Memory and not LocalHub"
exec "$venv/bin/python" -m pytest "$@"
