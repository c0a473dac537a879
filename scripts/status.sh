#!/usr/bin/env bash
# Lists the runs: stage, state (running, finished, interrupted), step, time left, last metric.
#   reads   $OUTPUT_ROOT/*
#   writes  nothing
#   takes   a second
# Edit the variables, or override: OUTPUT_ROOT=/scratch/runs bash scripts/status.sh
set -euo pipefail

RUN=${RUN:-}                        # one run folder only: minionerec-industrial | ... | empty: all of them
source "$(dirname "$0")/env.sh"

if [ ! -e "$OUTPUT_ROOT" ] && [ "$#" -eq 0 ] && [ -z "$RUN" ]; then
    echo "no runs yet: $OUTPUT_ROOT is not there (bash scripts/quickstart.sh makes the first)"
    exit 0
fi
"$PYTHON" -m infer.status --root "$OUTPUT_ROOT${RUN:+/$RUN}" "$@"
