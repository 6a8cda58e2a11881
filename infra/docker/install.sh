#!/bin/sh
# Installs what it is given into /opt/marketflow, with versions and hashes as requirements.lock has them, for what
# is needed to run and to build alike. uv holds constraints to their hashes; pip does not, so uv comes first.
set -eu
export UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
if ! command -v uv >/dev/null; then
    sed -n '/^uv==/,/[^\\]$/p' requirements.lock >uv.txt
    pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes -r uv.txt
    uv venv --quiet /opt/marketflow
fi
[ $# = 0 ] || uv pip install --quiet --python /opt/marketflow/bin/python --compile-bytecode \
    --constraint requirements.lock --build-constraint requirements.lock "$@"
