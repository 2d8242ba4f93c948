#!/usr/bin/env bash
# Sets up .venv where needed (with FAMILY=onedl: .venv-onedl) and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
# shellcheck disable=SC1090
source ".venv${FAMILY:+-$FAMILY}/bin/activate"
exec python -m pytest "$@"
