#!/usr/bin/env bash
# Runs the parts of docs/reliability.md: all of them, or those that are named. `bash tools/reliability.sh random files`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(random indices large sanitizers cuda precision kills files faults threads long)
bash tools/setup.sh
# shellcheck disable=SC1091
source .venv/bin/activate
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/tests"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
try() { python -m pytest -q --all --run-slow "$@"; }

for part in "${@:-${all[@]}}"; do
    printf '\n[reliability] %s\n' "$part"
    case $part in
        random) try tests/test_properties.py --cases 10000 ;;
        indices) try tests/test_ops/test_cpu_indices.py ;;
        large) OMP_NUM_THREADS=2 try tests/test_ops/test_large.py ;;
        sanitizers) try tests/test_ops/test_cpu_builds.py -k 'not aarch64' ;;
        cuda) try tests/test_ops/test_cuda_emulation.py ;;
        precision)
            try tests/test_ops/test_precision.py tests/test_ops/test_nonfinite.py
            python tests/test_ops/test_precision.py ;;
        kills) python tests/test_engine/kills.py "$folder/kills" 30 ;;
        files) try tests/test_hostile_names.py tests/test_checkpoint/test_hostile.py --cases 2000 ;;
        faults)
            try tests/test_engine/test_processes.py tests/test_ops/test_build.py
            try tests/test_engine/test_saving.py tests/test_inference tests/test_export -k 'disk'
            try tests/test_families.py -k 'ended or failed' ;;
        threads) try tests/test_ops/test_threads.py ;;
        long) python tests/test_engine/long_run.py "$folder/long" 60 ;;
        *) printf 'there is no part %s: choose from %s\n' "$part" "${all[*]}" >&2; exit 2 ;;
    esac
done
