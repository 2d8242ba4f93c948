#!/usr/bin/env bash
# Sets up .venv where needed (with FAMILY=onedl: .venv-onedl) and runs the tests, in two processes; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
# shellcheck disable=SC1090
source ".venv${FAMILY:+-$FAMILY}/bin/activate"
# Most tests keep one core busy, and two threads each would be in each other's way.
export OMP_NUM_THREADS=1
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
