#!/bin/sh
# Prints the path of a Python >= 3.12 that can make a virtual environment, or says what to install.
#
# A name on PATH proves nothing: version managers leave shims there that fail when they are run. So each candidate is
# run. Order: $PYTHON, PATH, pyenv's versions folder, uv.

works() {
    [ -n "$1" ] && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

found() {
    "$1" -c 'import sys; print(sys.executable)'
    exit 0
}

if [ -n "$PYTHON" ]; then
    works "$PYTHON" && found "$PYTHON"
    echo "PYTHON=$PYTHON is not a Python 3.12 or newer that runs and has venv." >&2
    exit 1
fi

for name in python3.12 python3.13 python3.14 python3 python; do
    works "$(command -v $name 2>/dev/null)" && found "$name"
done

for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
    works "$path" && found "$path"
done

if command -v uv >/dev/null 2>&1; then
    path=$(uv python find '>=3.12' 2>/dev/null)
    works "$path" && found "$path"
fi

cat >&2 <<'END'
No Python 3.12 or newer that runs was found (looked on PATH, in pyenv's versions folder, and asked uv).
Install one and run make again:
  uv:             uv python install 3.12
  pyenv:          pyenv install 3.12
  Debian, Ubuntu: sudo apt install python3.12 python3.12-venv
  macOS:          brew install python@3.12
Or name one: make demo PYTHON=/path/to/python3.12
END
exit 1
