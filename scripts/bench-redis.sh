#!/bin/sh
# Make sure that the benchmarks of peers find a Redis, which some of them keep results in: one that is named, one that
# is installed, or, as root on Debian or Ubuntu, one that is installed now. None is started: the benchmarks do that.
# Without one, those peers say in the table that they could not be measured.
set -eu
if [ -n "${ATASKS_BENCH_REDIS_URL:-}" ] || command -v redis-server >/dev/null; then
    exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "There is no Redis, which some peers need: install redis-server, or set ATASKS_BENCH_REDIS_URL." >&2
    exit
fi
echo "Installing redis-server, which some peers keep results in ..."
# A policy that says no keeps the package from starting the server as a service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get update >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server >/dev/null
