#!/bin/sh
# Make sure that the tests find a PostgreSQL. tests/brokers/postgres.py says which; where it finds none, install
# Debian's server if that can be done here. Nothing of it is started: the tests start a server of their own.
set -eu
. "$(dirname "$0")/ensure.sh"

# Keep the package from making a cluster, and so from starting it as a service.
prepare() {
    mkdir -p /etc/postgresql-common
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    fi
}

ensure tests.brokers.postgres postgresql
