#!/usr/bin/env bash
# Encoder-decoders over semantic IDs (TIGER, HiD-VAE's retriever), from nothing to metrics.
#   reads   $DATA_ROOT/$DATASET (01), its sids/$SIDS (04), configs/$PAPER/${NAME}{,_examples,_base,_recommend}.yaml
#   writes  $DATA_ROOT/$DATASET/examples/$EXAMPLES, $OUTPUT_ROOT/$RUN/{$NAME.base,$NAME.vocab,$NAME}, eval/$NAME.{valid,test}, each with metrics/
#   takes   8 minutes on one CPU thread for thousands of items and users (tiger.yaml)
# Edit the variables, or override:
#   NAME=tiger_published RUN=seed1 bash scripts/train_tiger.sh --seed 1
#   PAPER=hidvae DATASET=scientific SIDS=hidvae_concatenated NAME=retriever bash scripts/train_tiger.sh
#   EXPAND_ARGS="--init vectors --embeddings data/industrial/embeddings/text_cooc" bash scripts/train_tiger.sh
# --overwrite and --help reach all programs; trailing flags go to train.train_tiger.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-tiger}                 # tiger | tiger_published; with PAPER=hidvae: retriever
EXAMPLES=${EXAMPLES:-$SIDS.$NAME}
EXPAND_ARGS=${EXPAND_ARGS:-}        # flags of preprocess.expand_vocab
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate
source "$(dirname "$0")/env.sh"

share_flags "preprocess.build_examples preprocess.init_base_model preprocess.expand_vocab train.train_tiger infer.recommend infer.evaluate" "$@"
data="$DATA_ROOT/$DATASET" sids="$DATA_ROOT/$DATASET/sids/$SIDS" examples="$DATA_ROOT/$DATASET/examples/$EXAMPLES"
model="$OUTPUT_ROOT/$RUN/$NAME"
config_flags "${NAME}_examples"
"$PYTHON" -m preprocess.build_examples "${CONFIGS[@]}" --data "$data" --sids "$sids" --output_dir "$examples" ${SHARED[@]+"${SHARED[@]}"}
config_flags "${NAME}_base"
"$PYTHON" -m preprocess.init_base_model "${CONFIGS[@]}" --data "$data" --output_dir "$model.base" ${SHARED[@]+"${SHARED[@]}"}
tokens=()
if [ -f "$examples/signals.json" ]; then tokens=(--add_tokens_list "$examples/signals.json"); fi
# shellcheck disable=SC2086
"$PYTHON" -m preprocess.expand_vocab --model "$model.base" --sids "$sids" --output_dir "$model.vocab" ${tokens[@]+"${tokens[@]}"} \
    ${SHARED[@]+"${SHARED[@]}"} $EXPAND_ARGS
config_flags "$NAME"
"$PYTHON" -m train.train_tiger "${CONFIGS[@]}" --model "$model.vocab" --examples "$examples" --sids "$sids" --output_dir "$model" "$@"
config_flags "${NAME}_recommend"
for split in valid test; do
    "$PYTHON" -m infer.recommend "${CONFIGS[@]}" --model "$model" --examples "$examples" --sids "$sids" --split "$split" \
        --output_dir "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" ${SHARED[@]+"${SHARED[@]}"}
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" --data "$data" --sids "$sids" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
done
