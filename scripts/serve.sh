#!/usr/bin/env bash
# A page and an HTTP endpoint for one model, on this machine only.
#   reads   $MODEL (the final/ of a training stage), $DATA_ROOT/$DATASET, its {examples/$EXAMPLES,sids/$SIDS}
#   writes  nothing; needs: .venv/bin/python -m pip install -r requirements-serve.txt
#   takes   seconds to start; answers until Ctrl-C
# Edit the variables, or override: DATASET=industrial NAME=sft_recommend PORT=8080 bash scripts/serve.sh --decode.beams 20
# On a cluster: ssh -L 8000:127.0.0.1:8000 <node> brings the page to your desk.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-grpo}                  # which stage's model: grpo | sft_recommend | ...
PORT=${PORT:-8000}                  # 0 = a free one
source "$(dirname "$0")/env.sh"
MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/$NAME/final}

exec "$PYTHON" -m infer.serve --model "$MODEL" --data "$DATA_ROOT/$DATASET" --port "$PORT" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" "$@"
