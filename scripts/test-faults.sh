#!/bin/sh
# Run the tests with faults. Most of the time they wait, so four run at once; the cluster's three nodes keep two cores
# busy, and have them to themselves.
set -u
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
failed=0
"$python" -m pytest --numprocesses 4 --dist worksteal --ignore tests/faults/test_cluster.py tests/faults || failed=1
"$python" -m pytest tests/faults/test_cluster.py || failed=1
exit "$failed"
