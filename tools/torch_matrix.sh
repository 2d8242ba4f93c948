#!/usr/bin/env bash
# Runs the tests of mmrednet.ops and mmrednet.layers, which need only torch, with the given versions of torch:
#     bash tools/torch_matrix.sh 2.6.0 2.15.0
# Each version is installed in a temporary folder (5 GB, several minutes) and removed again. PYTHON selects the Python
# (default: python3.11). Prints one row of a table for each version. The exit status is 1 if a test fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || { echo 'usage: bash tools/torch_matrix.sh VERSION...' >&2; exit 2; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The kernels are compiled for a temporary torch, so they are not stored in the user's cache.
export MMREDNET_CACHE_DIR=$folder/cache
failed=0
printf '| Python | torch | CUDA | NumPy | tests of ops and layers |\n| --- | --- | --- | --- | --- |\n'
for version; do
    "${PYTHON:-python3.11}" -m venv --clear "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-cache-dir "torch==$version" numpy pytest hypothesis
    # The emulated CUDA kernels do not depend on torch.
    "$python" -m pytest -q -p no:cacheprovider tests/test_ops tests/test_layers \
        --ignore tests/test_ops/test_cuda_emulation.py >"$folder/log" 2>&1 || { failed=1; cat "$folder/log" >&2; }
    "$python" -c 'import sys, platform, numpy, torch
print("|", " | ".join((platform.python_version(), torch.__version__, str(torch.version.cuda), numpy.__version__, *sys.argv[1:])), "|")' "$(tail -n 1 "$folder/log")"
done
exit $failed
