#!/usr/bin/env bash
# Stands where Python stands with DRY_RUN=1: prints the command that would run, and runs nothing.
#   reads   $DRY_PYTHON and its arguments
#   writes  nothing
set -euo pipefail

printf '%q ' "$DRY_PYTHON" "$@"
echo
