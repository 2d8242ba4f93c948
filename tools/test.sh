#!/usr/bin/env bash
# Sets up .venv where needed and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
source .venv/bin/activate
exec python -m pytest "$@"
