#!/bin/sh
# Draw the mermaid blocks of docs/ as docs/pictures/*.svg, with chromium and mermaid, which npm fetches once.
set -eu
cd "$(dirname "$0")/../.."
version=12.3.0
script=.cache/mermaid-$version.min.js
if [ ! -e "$script" ]; then
    mkdir -p .cache
    folder=$(mktemp -d)
    (cd "$folder" && npm pack --silent "mermaid@$version" >/dev/null && tar xzf mermaid-*.tgz package/dist/mermaid.min.js)
    mv "$folder/package/dist/mermaid.min.js" "$script"
    rm -rf "$folder"
fi
"${VENV:-.venv}/bin/python" scripts/site/pictures.py "$script"
