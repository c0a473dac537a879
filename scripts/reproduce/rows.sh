# Sourced by the scripts of a table (PAPER, DATASET and ROWS set): every row through its stages, seed by seed, into the results
# file. Not a program. A stage that is finished is kept, so that a script that was stopped goes on where it was.
#   variables that all of these scripts know:
#   RAW=...            the folder that stage 01 reads
#   ROWS="compact"     only these rows, and what they need
#   SEEDS="0 1 2"      seeds of a row that has any
#   MINUTES=100        no new run begins later than this; run the script again to go on
#   RESULTS=...        where results/<dataset>.json lies; default configs/$TABLE
#   DRY=1              say the runs and the records, do nothing
VERIFY=${VERIFY:-}                  # a tolerance: hold the rows to the file instead of recording them (verify.sh)
RECOMPUTE=${RECOMPUTE:-}            # metrics alone, from the predictions that are there
STORED_SEEDS=""                     # of the runs that the file has of a row, unless SEEDS says which
if [ -n "$RECOMPUTE" ] && [ -n "$VERIFY" ] && [ -z "${SEEDS:-}" ]; then STORED_SEEDS=yes; fi
SEEDS=${SEEDS:-0 1 2}
MINUTES=${MINUTES:-100}
unset WEIGHTS                       # of every ensemble: a row's command does not name them
if [ "$PAPER" = best ]; then export QUANTIZER=${QUANTIZER-balanced} WEIGHTS=likelihood; fi      # as chain.sh
SIDS=${SIDS:-${QUANTIZER:-rqkmeans}}
TABLE=${TABLE:-$PAPER}              # the folder of configs/ that has the table
RESULTS=${RESULTS:-configs/$TABLE}
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
export PAPER DATASET SIDS RAW DATA_ROOT OUTPUT_ROOT PYTHON
no_flags "$@"
refuse() {
    echo "ERROR 2: $(basename "$0"): $*" >&2
    exit 2
}
if [ -n "${ROW:-}" ] && [ -z "$VERIFY" ]; then refuse "it has been given ROW=$ROW, which is for verify.sh -> ROWS=$ROW"; fi
# A row that cannot be made is said before hours have gone into the others: the rows are those whose command in rows.csv is this script.
listed=""
if [ -f "configs/$TABLE/rows.csv" ]; then
    listed=$(sed -n "s|.*ROWS=\([a-z0-9_]*\) bash scripts/reproduce/$(basename "$0")\$|\1|p" "configs/$TABLE/rows.csv" | awk '!seen[$0]++' | xargs)
fi
for row in ${listed:+$ROWS}; do
    case " $listed " in
        *" $row "*) ;;
        *) refuse "ROWS has $row -> $listed (configs/$TABLE/rows.csv, which has the commands of larger models too)" ;;
    esac
done
for seed in $SEEDS; do
    case $seed in *[!0-9]*) refuse "SEEDS has $seed -> whole numbers, as in SEEDS=\"0 1 2\"" ;; esac
done
case $MINUTES in *[!0-9]* | "") refuse "MINUTES=$MINUTES -> a whole number of minutes" ;; esac
read -r -a seeds <<<"$SEEDS"
if [ "${#seeds[@]}" -eq 0 ]; then refuse "SEEDS is empty -> whole numbers, as in SEEDS=\"0 1 2\""; fi
base=$PAPER-$DATASET
FLOORS="pop last recent itemknn itemknn_tuned"      # of the row baselines
# stored_seeds ROW: those of the runs that the file has of it.
stored_seeds() { sed -n "s/^$1 //p" <<<"$STORED" | tr ' ' '\n' | sed -n "s/^$base-s\([0-9][0-9]*\)\$/\1/p" | xargs; }

# So is a row or a seed that the file does not have to hold it to. STORED: a line for a row of the file, its name and its run folders.
STORED=""
if [ -n "$VERIFY" ]; then
    STORED=$("${DRY_PYTHON:-$PYTHON}" -m infer.compare --stored "$RESULTS/results/$DATASET.json")
    for row in ${ROWS/baselines/$FLOORS}; do
        case $'\n'$STORED in
            *$'\n'"$row "*) ;;
            *)
                known=$(cut -d ' ' -f 1 <<<"$STORED" | xargs)
                refuse "$RESULTS/results/$DATASET.json has no row $row to hold this one to -> it has ${known:-none}"
                ;;
        esac
        known=$(stored_seeds "$row")
        if [ -z "$known" ] || [ -n "$STORED_SEEDS" ]; then continue; fi
        for seed in "${seeds[@]}"; do
            case " $known " in *" $seed "*) ;; *) refuse "$RESULTS/results/$DATASET.json has no seed $seed of $row -> it has $known" ;; esac
        done
    done
fi
BEGUN=$SECONDS

# act NAME=value ... bash script flags...: one stage, unless the time is over; none where numbers are only computed again. What was to be
# verified and was not has not held: that is no 0.
act() {
    if [ -n "$RECOMPUTE" ] && [ "$1" != "$PYTHON" ]; then return; fi
    if [ -n "${DRY:-}" ]; then echo "would run: $*"; return; fi
    if [ $((SECONDS - BEGUN)) -ge $((MINUTES * 60)) ]; then
        echo "$(basename "$0"): $MINUTES minutes are over -> run it again, it goes on with: $*"
        if [ -n "$VERIFY" ]; then exit 143; fi
        exit 0
    fi
    env "$@"
}

# keep NAME RUN...: the evaluated test predictions of these runs become a row of the results file, or are held to it.
keep() {
    local name=$1 run folders=() file=$RESULTS/results/$DATASET.json command
    shift
    for run in "$@"; do folders+=("$OUTPUT_ROOT/$run/eval/$name.test"); done
    command="ROWS=${ASKED} SEEDS=\"$SEEDS\" bash scripts/reproduce/$(basename "$0")"
    folders=$(list_of "${folders[@]}")
    if [ -n "$RECOMPUTE" ]; then
        for run in "$@"; do         # all of them before anything is removed
            if [ -z "${DRY:-}" ] && [ ! -f "$OUTPUT_ROOT/$run/eval/$name.test/manifest.json" ]; then
                refuse "there are no predictions in $OUTPUT_ROOT/$run/eval/$name.test -> OUTPUT_ROOT, or SEEDS of the runs that are there"
            fi
        done
        for run in "$@"; do
            if [ -z "${DRY:-}" ]; then rm -rf "$OUTPUT_ROOT/$run/eval/$name.test/metrics"; fi      # derived from the predictions beside it
            # shellcheck disable=SC2086
            act "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$run/eval/$name.test" --data "$DATA_ROOT/$DATASET" \
                --sids "$DATA_ROOT/$DATASET/sids/$SIDS" ${EVALUATE_ARGS:-}
        done
    fi
    if [ -n "$VERIFY" ]; then
        act "$PYTHON" -m infer.compare --runs "$folders" --verify "$file" --tolerance "$VERIFY"
    else
        act "$PYTHON" -m infer.compare --runs "$folders" --record "$file" --command "$command"
    fi
}

# Which data, and its semantic IDs.
prepare() {
    local item_kinds=${1:-"02 04 07"} number
    act bash scripts/01_prepare_data.sh
    if [ "$PAPER" = best ] && [ -z "$RECOMPUTE" ]; then
        act RUN="$base" STAGES=plan bash scripts/chain.sh
        take_plan "$OUTPUT_ROOT/$base/plan"
    fi
    for number in $item_kinds; do act STAGES="$number" bash scripts/chain.sh; done
}

per_seed() {
    local seed
    for seed in "${seeds[@]}"; do "$@" "$seed"; done
}
runs_of_seeds() { printf "$base-s%s " "${seeds[@]}"; }

sequential() { act NAME="$1" RUN="$base-s$2" bash scripts/train_sequential.sh --seed "$2"; }
tiger() { act NAME="$1" RUN="$base-s$2" bash scripts/train_tiger.sh --seed "$2"; }
compact() { act NAME="$1" RUN="$base-s$2" TEACHER="${3:-}" bash scripts/train_compact.sh --seed "$2"; }

teacher() { act RUN="$base" bash scripts/train_teacher.sh; }
TEACHING=$OUTPUT_ROOT/$base/baselines/teacher

language_model() {
    local stage=$1 seed=$2 teaching=${3:-}
    act RUN="$base-s$seed" bash scripts/08_expand_vocab.sh --seed "$seed"
    act RUN="$base-s$seed" STAGE="$stage" TEACHER="$teaching" bash sft.sh --seed "$seed"
    act RUN="$base-s$seed" NAME="sft_$stage" bash evaluate.sh
}
grpo() {
    language_model recommend "$2"
    act RUN="$base-s$2" NAME="$1" TEACHER="${3:-}" bash rl.sh --seed "$2"
    act RUN="$base-s$2" NAME="$1" bash evaluate.sh
}
# One draw of the fusion: mixture, sequential model of this seed and the next, distilled generator, recent popularity; equal weights, or
# for PAPER=best those of the likelihood.
fusion() {
    local next=$((($1 + 1) % 3))
    teacher
    sequential "$SEQUENTIAL" "$1"
    sequential "$SEQUENTIAL" "$next"
    compact compact_distilled "$1" "$TEACHING"
    act MEMBERS="$OUTPUT_ROOT/$base/baselines/mixture,$SEQUENTIAL,$OUTPUT_ROOT/$base-s$next/baselines/$SEQUENTIAL,compact_distilled${TREND:+,$OUTPUT_ROOT/$base/baselines/trend}" \
        NAME=fusion RUN="$base-s$1" bash scripts/fuse.sh
}

make_row() {
    local row=$1 seed
    ASKED=$1
    # The sequential model of a data set: the plan's where there is one (items without titles have no text to be aware of).
    SEQUENTIAL=${SEQUENTIAL:-text} TREND=${TREND-trend}
    if [ -n "$STORED_SEEDS" ]; then read -r -a seeds <<<"$(stored_seeds "$row")"; fi
    case $row in
        baselines)
            act RUN="$base" bash scripts/train_baselines.sh
            for row in $FLOORS; do keep "$row" "$base"; done
            return
            ;;
        itemknn_text | mixture)
            act MODELS="$row" RUN="$base" bash scripts/train_baselines.sh
            keep "$row" "$base"
            return
            ;;
        tiger* | retriever*) per_seed tiger "$row" ;;
        compact_distilled)
            teacher
            for seed in "${seeds[@]}"; do compact "$row" "$seed" "$TEACHING"; done
            ;;
        compact) per_seed compact "$row" ;;
        sft_distilled)
            teacher
            for seed in "${seeds[@]}"; do language_model distilled "$seed" "$TEACHING"; done
            ;;
        sft_*) per_seed language_model "${row#sft_}" ;;
        grpo_teacher)
            for seed in "${seeds[@]}"; do
                sequential "$SEQUENTIAL" "$seed"
                grpo "$row" "$seed" "$OUTPUT_ROOT/$base-s$seed/baselines/$SEQUENTIAL"
            done
            ;;
        grpo*) per_seed grpo "$row" ;;
        fusion) per_seed fusion ;;
        *) per_seed sequential "$row" ;;
    esac
    # shellcheck disable=SC2046
    keep "$row" $(runs_of_seeds)
}

show_table() {
    if [ -z "$VERIFY" ] && [ "$RESULTS" = "configs/$TABLE" ]; then act "$PYTHON" -m infer.compare --table --papers "[$TABLE]"; fi
}

make_rows() {
    local row
    for row in $ROWS; do make_row "$row"; done
    show_table
}
