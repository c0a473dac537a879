#!/usr/bin/env bash
# Lists the runs: stage, state (running, finished, interrupted), step, time left, last metric.
#   reads   $OUTPUT_ROOT/*
#   writes  nothing
#   takes   a second
# Edit the variables, or override: OUTPUT_ROOT=/scratch/runs bash scripts/status.sh
set -euo pipefail

RUN=${RUN:-}                        # one run folder only: minionerec-industrial | ... | empty: all of them
source "$(dirname "$0")/env.sh"

"$PYTHON" -m infer.status --root "$OUTPUT_ROOT${RUN:+/$RUN}" "$@"
