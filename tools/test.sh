#!/usr/bin/env bash
# Sets up .venv (with FAMILY=onedl: .venv-onedl) if needed, and runs the tests in two processes. --all also runs the
# tests marked full, and --run-slow those marked slow. All arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
# shellcheck disable=SC1090
source ".venv${FAMILY:+-$FAMILY}/bin/activate"
# One thread for each of the two processes. A process that has finished its half takes tests of the other half.
export OMP_NUM_THREADS=1
exec python -m pytest --numprocesses 2 --dist worksteal "$@"
