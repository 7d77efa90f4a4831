#!/bin/sh
# venv.sh [EXTRA...]: make sure that $VENV (.venv) exists and holds this package, editable, with these extras.
# Installs nothing where pyproject.toml is what it was at the last installation.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bin=$venv/bin

# What the stamp of an extra holds: change any of it and the extra is installed again.
state() {
    pwd
    cat pyproject.toml
}

version() {
    "$1" -c 'import sys; print(sys.implementation.name, sys.version_info[:2])' 2>/dev/null || echo none
}

# As root on Debian or Ubuntu, install the package that `python3 -m venv` lacks there; elsewhere say what to do.
add_ensurepip() {
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing $package, which \`$1 -m venv\` needs ..."
        apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 || {
            apt-get update >/dev/null
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" >/dev/null
        }
    else
        echo "\`$1 -m venv\` needs the package $package: install it (sudo apt-get install $package)," >&2
        echo "or name another interpreter: make ... PYTHON=/path/to/python3" >&2
        exit 1
    fi
}

if [ ! -x "$bin/python" ] || ! "$bin/python" -m pip --version >/dev/null 2>&1; then
    stale=1
elif [ -n "${PYTHON:-}" ] && [ "$(version "$PYTHON")" != "$(version "$bin/python")" ]; then
    stale=1
else
    stale=
fi
if [ -n "$stale" ]; then
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
        echo "VENV=$venv exists and is no virtual environment: name another folder, or remove it." >&2
        exit 1
    fi
    python=$(scripts/python.sh)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || add_ensurepip "$python"
    echo "Making $venv with $python ($(version "$python")) ..."
    "$python" -m venv --clear "$venv"
fi

if [ $# = 0 ]; then  # the package alone, which every extra brings along
    for stamp in "$venv"/installed-*; do
        if state | cmp -s - "$stamp"; then exit 0; fi
    done
    set -- package
fi
missing=
for extra in "$@"; do
    state | cmp -s - "$venv/installed-$extra" || missing="$missing${missing:+,}$extra"
done
if [ -n "$missing" ]; then
    what=.$([ "$missing" = package ] || echo "[$missing]")
    echo "Installing atasks${what#.} into $venv: nothing is said meanwhile, for up to some minutes ..."
    # uv needs a fifth of pip's processor time. Where it cannot be had, or does not find what pip is configured to
    # find, pip says why, or installs.
    pip="-m pip install --quiet --disable-pip-version-check"
    { "$bin/python" $pip uv && "$bin/python" -m uv pip install --quiet --python "$bin/python" --editable "$what"; } \
        2>/dev/null || "$bin/python" $pip --editable "$what"
    for extra in "$@"; do
        state >"$venv/installed-$extra"
    done
fi
