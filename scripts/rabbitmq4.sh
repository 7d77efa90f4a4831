#!/bin/sh
# rabbitmq4.sh [FOLDER [PYTEST-ARGUMENT...]]: run the AMQP suites against RabbitMQ 4, of Debian trixie.
#
# Sets it up in FOLDER (default: .cache/rabbitmq4 in this checkout; about 300 MB, two minutes) unless that is done.
# Needs root and debootstrap, and runs on Debian and its kin. Nothing is installed outside of FOLDER but debootstrap,
# no service is started, and no mount outlives the process that needs it. With arguments, pytest gets these.
set -eu
cd "$(dirname "$0")/.."
checkout=$(pwd)
folder=${1:-$checkout/.cache/rabbitmq4}
[ $# = 0 ] || shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd -P)
root=$folder/root
sbin=$folder/sbin

if [ "$(id -u)" != 0 ]; then
    echo "RabbitMQ 4 is run in a chroot, which takes root: run this as root, or in a container." >&2
    exit 1
fi

quietly() {
    if ! "$@" >"$folder/log" 2>&1; then
        tail -n 20 "$folder/log" >&2
        echo "This failed: $*; see above, or $folder/log." >&2
        exit 1
    fi
}

set_up() {
    if ! command -v debootstrap >/dev/null; then
        echo "Installing debootstrap ..."
        quietly apt-get update
        quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap
    fi
    echo "Setting up Debian trixie in $root ..."
    rm -rf "$root"
    quietly debootstrap --variant=minbase trixie "$root"
    # A policy that says no keeps the package from starting the server as a service.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    echo "Installing rabbitmq-server there ..."
    quietly env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" \
        apt-get install -y --no-install-recommends rabbitmq-server
    chroot "$root" apt-get clean
    echo "127.0.0.1 localhost" >"$root/etc/hosts"
    # The tests hand over folders by their names out here; this makes them mean the same in there.
    mkdir -p "$root$folder"
    ln -sfn / "$root$root"
    touch "$folder/done"
}

# PROGRAM PATH: a program of that name in $sbin, which runs the one at the path in there, as the same process.
# The mount namespace is its own: what is mounted in it goes when it ends.
wrap() {
    cat >"$sbin/$1" <<END
#!/bin/sh
exec unshare --mount --propagation private sh -c '
    mount -t proc proc "\$0/proc" && exec chroot "\$0" "\$@"
' '$root' '$2' "\$@"
END
    chmod +x "$sbin/$1"
}

[ -e "$folder/done" ] || set_up
mkdir -p "$sbin"
wrap rabbitmq-server /usr/lib/rabbitmq/bin/rabbitmq-server
wrap rabbitmqctl /usr/lib/rabbitmq/bin/rabbitmqctl
wrap erl /usr/bin/erl
wrap epmd /usr/bin/epmd

scripts/venv.sh test
chroot "$root" dpkg-query --show --showformat '${Package} ${Version}\n' rabbitmq-server erlang-base
[ $# != 0 ] || set -- tests/conformance tests/amqp tests/faults
unset ATASKS_TEST_AMQP_URL
# Folders that the tests make for the broker have to be below $root.
export ATASKS_TEST_RABBITMQ_SBIN="$sbin" TMPDIR="$root/tmp" PATH="$sbin:$PATH"
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
