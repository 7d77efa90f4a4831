#!/bin/sh
# Make sure that the tests of the page find a browser: install Debian's Chromium where that can be done here, else say
# so. Without one these tests are skipped, and say why; with CI set they fail.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The tests of the page are skipped: they need chromium or google-chrome." >&2
    exit
fi
echo "Installing chromium, for the tests of the page ..."
log=$(mktemp)
if ! {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium
} >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "Installing chromium failed: see above, or $log. The tests of the page are skipped." >&2
    exit
fi
rm -f "$log"
