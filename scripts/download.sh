#!/usr/bin/env bash
# Raw files of a known data set from their publisher, checked; or what to place where.
#   reads   the publisher's server (the one script that uses the network)
#   writes  $DATA_ROOT/$DATASET/raw
#   takes   as long as the network does; a half download goes on where it stopped
# bash scripts/download.sh ml1m
# DATASET=games bash scripts/download.sh amazon18 --category Video_Games
# Then: DATASET=ml1m PAPER=hidvae bash scripts/01_prepare_data.sh
set -euo pipefail

WHICH=${1:-}                        # ml1m ml32m ml_latest kuairand1k beauty14_raw ... (no name: the list)
case $WHICH in -*) WHICH="" ;; *) if [ $# -gt 0 ]; then shift; fi ;; esac
DATASET=${DATASET:-$WHICH}          # folder of $DATA_ROOT
source "$(dirname "$0")/env.sh"
RAW=${RAW:-$DATA_ROOT/$DATASET/raw}

"$PYTHON" -m data.download --name "$WHICH" --output_dir "$RAW" "$@"
