#!/usr/bin/env bash
# Is this machine ready? One line per finding: ok, warn or FAIL.
#   reads   the environment, .env (names only), $DATA_ROOT, requirements.txt
#   writes  nothing
#   takes   seconds; also without .venv
# Needs are those of the quickstart; for a run of your own: bash scripts/doctor.sh --memory_gib 64 --disk_gib 200
# Exit code: 0 ready, 2 unknown flag, 3 not ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/find_python.sh

chosen=""
for name in ${PYTHON:+"$PYTHON"} .venv/bin/python $(PYTHON='' python_candidates); do
    if found=$(run_python "$name") && supported "$found"; then
        chosen=$name
        break
    fi
done
if [ -z "$chosen" ]; then
    echo "FAIL  python      no Python 3.11-3.13 runs here -> install one, or PYTHON=/path/to/python3.12"
    exit 3
fi
PYTHONPATH=$PWD exec "$chosen" -m configs.doctor "$@"
