#!/bin/sh
# Run the tests that touch dependencies, with the lowest versions that pyproject.toml allows, in an environment of
# their own. A bound that is too low is found here, and not by whoever has an old version installed. Arguments go to
# pytest in the place of these tests; with --version nothing but the environment is made.
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
# Of each dependency the tests that get furthest into it: those of payloads, envelopes and pickled functions; of the
# client library, of addresses and of the AMQP transport; of the command, and of what it reloads; of a bar that shows
# progress. What stands between these is this package's own, and `make test` has run it.
processes=tests/unit/pipeline/test_processes.py
[ $# != 0 ] || set -- --numprocesses 2 --dist worksteal \
    tests/unit/codecs tests/unit/failures tests/unit/transport/amqp tests/unit/test_connection_urls.py \
    tests/unit/test_public_names.py tests/unit/test_wire.py tests/unit/pipeline/test_iterating.py \
    $processes::test_all_roles_work_in_processes $processes::test_a_script_without_a_guard_works \
    $processes::test_what_cannot_be_pickled_on_the_way_is_an_error_of_the_item \
    tests/conformance/test_transports.py::TestAMQP \
    tests/amqp/test_acks.py tests/amqp/test_connecting.py tests/amqp/test_tls.py tests/amqp/test_topology.py \
    tests/amqp/test_unreadable_properties.py tests/amqp/test_wire.py \
    tests/cli/test_completion.py tests/cli/test_errors.py tests/cli/test_reload.py tests/cli/test_runs.py
exec "$venv/bin/python" -m pytest "$@"
