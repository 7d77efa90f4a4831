#!/bin/sh
# Make sure that the tests find a PostgreSQL. tests/brokers/postgres.py says which; where it finds none, install
# Debian's server if that can be done here. Nothing of it is started: the tests start a server of their own.
set -eu
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python

code=0
instructions=$("$python" -m tests.brokers.postgres 2>&1) || code=$?
if [ "$code" = 0 ]; then
    exit
fi
none=3
if [ "$code" != "$none" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$instructions" >&2
    exit 1
fi

echo "Installing postgresql, which the tests start a private server of ..."
# This keeps the package from making a cluster, and from starting it as a service.
mkdir -p /etc/postgresql-common
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
log=$(mktemp)
if ! {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql
} >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "Installing postgresql failed: see above, or $log." >&2
    echo "$instructions" >&2
    exit 1
fi
rm -f "$log"
"$python" -m tests.brokers.postgres
