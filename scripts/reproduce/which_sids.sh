#!/usr/bin/env bash
# How much do the semantic IDs carry, and which are best: the same small recommender on the IDs of every constructor, three seeds.
#   reads   $DATA_ROOT/$DATASET with its embeddings/$EMBEDDINGS (01, 02); $PUBLISHED_SIDS, a published index, where it is set
#   writes  $DATA_ROOT/$DATASET/sids/<kind>, $OUTPUT_ROOT/which-$DATASET-s<seed>, $OUTPUT_ROOT/compare/which_sids.$DATASET
#   takes   100 CPU seconds a kind and seed on Industrial; resumable, a stage that is finished is kept
# Edit the variables, or override:
#   DATASET=industrial PUBLISHED_SIDS=/path/to/sids.parquet bash scripts/reproduce/which_sids.sh
#   KINDS="rqkmeans balanced popularity shuffled" SEEDS=0 bash scripts/reproduce/which_sids.sh
# `keywords` are the IDs of rqkmeans whose tokens start as the mean text vector of their items; the correlation counts these IDs once.
# Two controls: `shuffled` are the IDs of rqkmeans dealt to the items at random, `popularity` are they with last codes by train rows. The
# table has intervals over users and the spread over seeds; below it the rank correlation of every figure of quality.json with HR and
# NDCG. SPLIT=valid chooses IDs; test is for the table of the ones that were chosen.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SPLIT=${SPLIT:-valid}               # valid | test
KINDS=${KINDS:-rqkmeans balanced opq rvq rqvae rqkmeans_plus plum keywords popularity shuffled${PUBLISHED_SIDS:+ published}}
SIDS=rqkmeans                       # the row that the others are tested against
ROWS=
source "$(dirname "$0")/rows.sh"

for kind in $KINDS; do              # all of them before the first one is made
    case $kind in
        published) if [ -z "${PUBLISHED_SIDS:-}" ]; then refuse "KINDS has published -> PUBLISHED_SIDS=/path/to/sids.parquet"; fi ;;
        popularity | shuffled | rqkmeans | keywords) ;;
        *) if ! has_recipe "quantizer_$kind"; then refuse "KINDS has $kind, there is no quantizer_$kind.yaml in configs/$PAPER"; fi ;;
    esac
done

for kind in $KINDS; do
    case $kind in
        published) act "$PYTHON" -m rq.import_sids --source "$PUBLISHED_SIDS" --data "$DATA_ROOT/$DATASET" --output_dir "$DATA_ROOT/$DATASET/sids/published" ;;
        popularity | shuffled) act QUANTIZER= SIDS="$kind" ASSIGN_ARGS="--repair $kind" bash scripts/04_build_sids.sh ;;
        rqkmeans | keywords) act QUANTIZER= SIDS=rqkmeans bash scripts/04_build_sids.sh ;;
        plum) act QUANTIZER=plum SIDS=plum bash scripts/04_build_sids.sh --data "$DATA_ROOT/$DATASET" ;;
        *) act QUANTIZER="$kind" SIDS="$kind" bash scripts/04_build_sids.sh ;;
    esac
    ids=$kind start=()
    if [ "$kind" = keywords ]; then ids=rqkmeans start=(--text.table init); fi
    act SIDS="$ids" bash scripts/07_build_examples.sh
    for seed in "${seeds[@]}"; do
        act SIDS="$ids" NAME="compact_$kind" RUN="which-$DATASET-s$seed" SPLITS="$SPLIT" bash scripts/train_compact.sh --seed "$seed" ${start[@]+"${start[@]}"}
    done
done
runs=()
for seed in "${seeds[@]}"; do runs+=("$OUTPUT_ROOT/which-$DATASET-s$seed"); done
act "$PYTHON" -m infer.compare --runs "$(list_of "${runs[@]}")" --split "$SPLIT" --intervals true --quality true --reference compact_rqkmeans \
    --metrics '[hr@10,ndcg@10]' --output_dir "$OUTPUT_ROOT/compare/which_sids.$DATASET"
