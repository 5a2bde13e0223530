#!/bin/sh
# Prints the path of a Python 3.11 that can make a virtual environment: torch's CPU build is to be had for it everywhere.
#
# As in find_python.sh a candidate counts only once it has run. Order: $PYTHON, PATH, pyenv's versions folder, uv.

works() {
    [ -n "$1" ] && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

for name in "$PYTHON" python3.11 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python3; do
    path=$(command -v "$name" 2>/dev/null)
    works "$path" && echo "$path" && exit 0
done

if command -v uv >/dev/null 2>&1; then
    path=$(uv python find '3.11' 2>/dev/null)
    works "$path" && echo "$path" && exit 0
fi

echo "No Python 3.11 that runs was found (looked on PATH, in pyenv's versions folder, and asked uv): make bench-env PYTHON=/path/to/python3.11" >&2
exit 1
