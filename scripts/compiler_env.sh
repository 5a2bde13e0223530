#!/bin/sh
# Installs into the environment .gpu-env or .tpu-env: JAX with that platform's compiler, what rlef_jax needs, and pytest.
#
# Nothing of it runs on the platform; constraints.txt holds the versions, the compiler's is JAX's own.
set -e
folder=$1
case $folder in
    *gpu*) extra=cuda12 ;;
    *tpu*) extra=tpu ;;
    *) echo "usage: sh scripts/compiler_env.sh .gpu-env|.tpu-env" >&2; exit 2 ;;
esac
jax=$(sed -n 's/^jax==//p' constraints.txt)
echo "installing jax[$extra]==$jax and what rlef_jax needs into $folder"
"$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt \
    "jax[$extra]==$jax" pytest hypothesis jaxtyping -e .
