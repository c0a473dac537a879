#!/usr/bin/env bash
# A row of a table again, and held to what is stored: by training at reduced cost, or from the predictions that are on disk.
#   reads   configs/$TABLE/results/<dataset>.json; for HOW=train $RAW, for HOW=predictions the runs below $OUTPUT_ROOT
#   writes  HOW=train: $OUTPUT_ROOT/verify; HOW=predictions: metrics of the runs, computed anew
#   takes   HOW=train: one seed of the row instead of all; HOW=predictions: seconds, for all runs that the file has of the row, or that of SEED
# Edit the variables, or override:
#   RAW=/path/to/tables ROW=compact_distilled bash scripts/reproduce/verify.sh minionerec_industrial
#   HOW=predictions ROW=compact_distilled bash scripts/reproduce/verify.sh minionerec_industrial
# A row that the file does not have is refused before anything runs. Exit code 4 when HR@10 or NDCG@10 of either level of a run is further off
# than the tolerance; 143 when MINUTES (100) were over before the row was held: run it again, it goes on. Training: seed 0 against the stored
# value of seed 0, .004 (other processors order sums otherwise; seeds of the small models differ by .0013 to .0031. Semantic IDs depend on the
# number of threads, and SFT on another machine was .010 off: configs/minionerec/README.md). Predictions: equal to the sixth digit.
set -euo pipefail

case ${1:-} in
    -h | --help) cd "$(dirname "$0")/../.." && source scripts/flags.sh && no_flags "$1" ;;
esac
TABLE_SCRIPT=${1:-}                 # a script of scripts/reproduce without its .sh
ROW=${ROW:-}                        # a row of rows.csv
HOW=${HOW:-train}                   # train | predictions
SEED=${SEED:-}                      # empty: 0 for HOW=train, every run that the file has of the row for HOW=predictions
TOLERANCE=${TOLERANCE:-}
if [ -z "$TABLE_SCRIPT" ] || [ -z "$ROW" ]; then
    echo "ERROR 2: which table and which row? -> ROW=compact_distilled bash scripts/reproduce/verify.sh minionerec_industrial" >&2
    exit 2
fi
script=$(dirname "$0")/$TABLE_SCRIPT.sh
if [ ! -f "$script" ]; then echo "ERROR 2: there is no $script -> $(ls "$(dirname "$0")" | tr '\n' ' ')" >&2; exit 2; fi

case $HOW in
    train)
        OUTPUT_ROOT=${OUTPUT_ROOT:-outputs}/verify ROWS=$ROW SEEDS=${SEED:-0} VERIFY=${TOLERANCE:-0.004} bash "$script"
        ;;
    predictions)
        ROWS=$ROW SEEDS=${SEED:-${SEEDS:-}} RECOMPUTE=1 VERIFY=${TOLERANCE:-1e-6} bash "$script"
        ;;
    *) echo "ERROR 2: HOW=$HOW -> train or predictions" >&2; exit 2 ;;
esac
