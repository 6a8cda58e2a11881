#!/bin/sh
# Installs into /opt/marketflow, with versions and hashes as requirements.lock has them, for what is needed to run and
# to build alike. uv holds constraints to their hashes; pip does not, so uv comes first.
#
#   install.sh                              uv and the virtual environment
#   install.sh dependencies PART..          what the parts' pyproject.toml name, so that a change of code leaves it
#   install.sh parts PART..                 the parts themselves
#   install.sh packages NAME..              other packages
set -eu
export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
install() {
    uv pip install --quiet --python /opt/marketflow/bin/python --compile-bytecode \
        --constraint requirements.lock --build-constraint requirements.lock "$@"
}
what=${1:-}
[ $# = 0 ] || shift
case $what in
'')
    sed -n '/^uv==/,/[^\\]$/p' requirements.lock >uv.txt
    pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes -r uv.txt
    uv venv --quiet /opt/marketflow
    ;;
dependencies)
    python - "$@" >dependencies.txt <<'EOF'
import sys, tomllib

for part in sys.argv[1:]:
    folder, _, extra = part.rstrip("]").partition("[")
    with open(f"{folder}/pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    named = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    print(*(name for name in named if not name.startswith("marketflow-")), sep="\n")
EOF
    install -r dependencies.txt
    ;;
parts)
    install --no-deps "$@"
    uv pip check --quiet --python /opt/marketflow/bin/python
    ;;
packages) install "$@" ;;
*)
    echo "install.sh: nothing is called $what" >&2
    exit 2
    ;;
esac
