#!/bin/sh
# bench-plot.sh FIGURES.json PICTURE.png: draw figures, with matplotlib in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
home=benchmarks/.envs/plot
if [ ! -e "$home/installed" ]; then
    "$(scripts/python.sh)" -m venv --clear "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "matplotlib>=3.9"
    touch "$home/installed"
fi
exec "$home/bin/python" -m benchmarks.plot "$@"
