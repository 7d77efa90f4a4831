#!/bin/sh
# Make sure that the tests find a RabbitMQ. tests/broker.py says which, in which order; where it finds none, install
# Debian's server if that can be done here. Nothing of it is started: the tests start a node of their own.
set -eu
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python

code=0
instructions=$("$python" -m tests.broker 2>&1) || code=$?
if [ "$code" = 0 ]; then
    exit
fi
none=3
if [ "$code" != "$none" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$instructions" >&2
    exit 1
fi

echo "Installing rabbitmq-server, which the tests start a private node of ..."
# A policy that says no keeps the package from starting the server as a service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
log=$(mktemp)
if ! {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends rabbitmq-server
} >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "Installing rabbitmq-server failed: see above, or $log." >&2
    echo "$instructions" >&2
    exit 1
fi
rm -f "$log"
"$python" -m tests.broker
