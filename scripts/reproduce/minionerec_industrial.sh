#!/usr/bin/env bash
# MiniOneRec's table on Amazon 2018 Industrial_and_Scientific: floors, sequential models, generators, fusions, ours.
#   reads   $RAW: items, interactions, sequences, users as parquet (configs/minionerec/industrial/prepare.yaml)
#   writes  configs/minionerec/results/industrial.json, the table of configs/minionerec/README.md; $OUTPUT_ROOT/minionerec-industrial{,-s0,...}
#   takes   the sum of its rows, about 25 CPU minutes for each of SFT and GRPO and seed, 2 to 12 for the others
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables ROWS="compact compact_distilled" bash scripts/reproduce/minionerec_industrial.sh
# Published: MiniOneRec .1586 / .1167 (HR@10 / NDCG@10, SID level, full train). The rows of a language model are in rows.csv: they
# need a GPU. Test is evaluated once per row and seed; nothing is chosen on it.
set -euo pipefail

PAPER=minionerec
DATASET=industrial
export QUANTIZER=${QUANTIZER-balanced}     # the best semantic IDs of scripts/reproduce/which_sids.sh (rq/README.md)
ROWS=${ROWS:-baselines itemknn_text mixture sasrec text hstu sasrec_published gru4rec_published caser_published compact compact_distilled
    fusion sft_recommend sft_distilled grpo_teacher tiger}
# The product that is listed twice (items 181 and 182) is the target of 200 of 4,533 rows: with it and without it.
export EVALUATE_ARGS=${EVALUATE_ARGS:---apart_items [181,182] --group_columns [category]}

source "$(dirname "$0")/rows.sh"

prepare
make_rows
