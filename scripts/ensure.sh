# The frame of the scripts that make sure of a server for the tests. To be sourced: no script of its own.

# ensure MODULE PACKAGE: MODULE says whether the tests find the server (0), or that there is none (3), and then what
# to do. If there is none, call `prepare`, which keeps the package from starting the server as a service, and
# install Debian's PACKAGE, if that can be done here.
ensure() {
    cd "$(dirname "$0")/.."
    python=${VENV:-.venv}/bin/python
    code=0
    instructions=$("$python" -m "$1" 2>&1) || code=$?
    if [ "$code" = 0 ]; then
        return
    fi
    none=3
    if [ "$code" != "$none" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$instructions" >&2
        exit 1
    fi
    echo "Installing $2, of which the tests start a private server ..."
    prepare
    log=$(mktemp)
    if ! {
        apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"
    } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "Installing $2 failed: see above, or $log." >&2
        echo "$instructions" >&2
        exit 1
    fi
    rm -f "$log"
    "$python" -m "$1"
}
