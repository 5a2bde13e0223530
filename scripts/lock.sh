#!/bin/sh
# Writes constraints.txt: every package of a fresh environment with the newest versions that setup.py's bounds allow.
#
# In an environment of its own, so that what .venv happens to hold decides nothing. Run the tests before committing it.
set -e
cd "$(dirname "$0")/.."
python=$(sh scripts/find_python.sh)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile -e '.[dev]'
{
    echo "# The versions that the tests ran against, written by \`make lock\`; every target of the Makefile installs these."
    echo "# $("$python" -c 'import platform as p; print(f"Python {p.python_version()}, {p.system()} {p.machine()}")')"
    "$scratch/venv/bin/python" -m pip freeze --exclude-editable | LC_ALL=C sort -f
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) packages; now: make test"
