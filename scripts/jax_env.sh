#!/bin/sh
# Installs into an environment JAX for a platform and what rlef_jax needs: sh scripts/jax_env.sh FOLDER EXTRA [PACKAGE ...]
#
# FOLDER is a virtual environment, EXTRA one of JAX's ("cuda12", "tpu"; "" for CPUs alone), PACKAGE as pip takes it.
# constraints.txt holds the versions; a platform's plugin is of JAX's own.
set -e
if [ $# -lt 2 ]; then sed -n '2p' "$0" | sed 's/.*: //' >&2; exit 2; fi
folder=$1
jax=jax${2:+[$2]}==$(sed -n 's/^jax==//p' constraints.txt)
shift 2
echo "installing $jax and what rlef_jax needs into $folder"
"$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt "$jax" "$@"
