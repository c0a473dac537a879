#!/usr/bin/env bash
# A folder that another system publishes -> a data set with its rows and its semantic IDs.
#   reads   $RAW (MiniOneRec: item.json, {train,valid,test}/*.csv or *.inter, index.json; SIDReasoner: the same and texts; MIMIGenRec: id2sid.json, sft/ or rl/;
#           NaviGen: pid2cid2tid.parquet, *_cid2cid.parquet)
#   writes  $DATA_ROOT/$DATASET, its sids/$SIDS
#   takes   seconds
# Edit the variables, or override:
#   FROM=minionerec RAW=/path/to/folder DATASET=industrial_published bash scripts/import_release.sh
#   FROM=mimigenrec RAW=/path/to/Industrial_and_Scientific DATASET=mimi bash scripts/import_release.sh
#   FROM=navigen RAW=/path/to/folder DATASET=navi bash scripts/import_release.sh      # TIDs: preprocess.generate_tids --given
#   IMPORT_ARGS="--sizes [256,256,256]" ...       # flags of rq.import_sids; trailing flags go to data.prepare
# Then DATASET=industrial_published SIDS=published bash scripts/train_baselines.sh, scripts/07_build_examples.sh, ...
# --overwrite and --help reach both programs.
set -euo pipefail

FROM=${FROM:-minionerec}            # minionerec | sidreasoner | mimigenrec | navigen
DATASET=${DATASET:-published}       # folder of $DATA_ROOT
SIDS=${SIDS:-published}             # names the directory
IMPORT_ARGS=${IMPORT_ARGS:-}
source "$(dirname "$0")/env.sh"
RAW=${RAW:-$DATA_ROOT/$DATASET/raw}

share_flags "data.prepare rq.import_sids" "$@"
"$PYTHON" -m data.prepare --config configs/template_release/prepare.yaml --adapter "$FROM" --raw "$RAW" \
    --output_dir "$DATA_ROOT/$DATASET" "$@"
# shellcheck disable=SC2086
"$PYTHON" -m rq.import_sids --source "$RAW" --data "$DATA_ROOT/$DATASET" \
    --output_dir "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $IMPORT_ARGS
