#!/bin/sh
# Make sure that the tests find a RabbitMQ. tests/broker.py says which, in which order; where it finds none, install
# Debian's server if that can be done here. Nothing of it is started: the tests start a node of their own.
set -eu
. "$(dirname "$0")/ensure.sh"

# Have a policy say no when the package would start the server as a service.
prepare() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
}

ensure tests.broker rabbitmq-server
