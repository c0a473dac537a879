#!/usr/bin/env bash
# What only a GPU can show, in one file with device and versions: decode (CUDA graphs) beside Hugging Face, SFT at 0.5B shapes in
# bfloat16, programs in bfloat16 and compiled beside the CPU, k-means of faiss-gpu where it is there, resume after a kill.
#   needs   this checkout, a CUDA GPU of 24 GB or more; Python 3.11-3.13
#   writes  $OUT/gpu.json (OUT: default outputs/gpu), and .venv-gpu where torch or transformers are missing
#   takes   at most 8 minutes: each part has its own time, and the JSON says which one failed; not run on a GPU yet
# OUT=/tmp/gpu bash tests/gpu/run.sh            on a machine without a GPU, to try the script: bash tests/gpu/run.sh --tiny
# Packages come from the pins of requirements.txt, within INSTALL_SECONDS; a machine without network needs them beforehand.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
OUT=${OUT:-outputs/gpu}
INSTALL_SECONDS=${INSTALL_SECONDS:-110}
mkdir -p "$OUT"

complete() { "$1" -c 'import torch, transformers, trl, pyarrow, jsonargparse, pytest, hypothesis' >/dev/null 2>&1; }

chosen=""
for python in ${PYTHON:+"$PYTHON"} .venv/bin/python python3.12 python3.11 python3.13 python3; do
    if command -v "$python" >/dev/null 2>&1 && complete "$python"; then
        chosen=$python
        break
    fi
done
if [ -z "$chosen" ]; then
    base=$(command -v python3.12 || command -v python3.11 || command -v python3.13 || command -v python3)
    chosen=.venv-gpu/bin/python
    # a torch that the machine has already is kept: it fits its driver
    "$base" -m venv --system-site-packages .venv-gpu >"$OUT/install.log" 2>&1
    pins=$(grep -hE '^[A-Za-z0-9_.-]+(\[[a-z]+\])?==' requirements.txt requirements-dev.txt)
    if "$chosen" -c 'import torch' >/dev/null 2>&1; then pins=$(grep -v '^torch==' <<<"$pins"); fi
    # shellcheck disable=SC2086
    timeout "$INSTALL_SECONDS" "$chosen" -m pip install --quiet --no-input $pins >>"$OUT/install.log" 2>&1 \
        || echo "packages are missing, see $OUT/install.log; parts that need them will fail" >&2
    if ! [ -x "$chosen" ]; then chosen=$base; fi
fi
"$chosen" -m tests.gpu.parts --out "$OUT/gpu.json" "$@"
