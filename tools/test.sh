#!/usr/bin/env bash
# Sets up .venv (with FAMILY=onedl: .venv-onedl) if needed, and runs the tests in three processes. --all also runs the
# tests marked full, and --run-slow those marked slow. All arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
# shellcheck disable=SC1090
source ".venv${FAMILY:+-$FAMILY}/bin/activate"
# Each process has one thread. Two cores stay busy while a test waits, and a process without tests takes those of another.
export OMP_NUM_THREADS=1
exec python -m pytest --numprocesses 3 --dist worksteal "$@"
