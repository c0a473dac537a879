# Sourced by every stage script: goes to the repository root, chooses the Python, sets the roots. Not a program.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/flags.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUTF8=1                            # files are UTF-8, whatever the locale says
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}     # nothing is downloaded unless you set this to 0
DATA_ROOT=${DATA_ROOT:-data}                   # data sets
OUTPUT_ROOT=${OUTPUT_ROOT:-outputs}            # runs
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
# DRY_RUN=1 prints every command that would run.
if [ -n "${DRY_RUN:-}" ]; then DRY_PYTHON=${DRY_PYTHON:-$PYTHON} PYTHON=scripts/print_command.sh; export DRY_PYTHON; fi
# A scheduler's notice is for the programs (configs/program.py; scripts/slurm/notice.sh); a script waits for them and says 143 too.
NOTICED=""
trap 'NOTICED=yes' USR1
case OUTPUT_ROOT=$OUTPUT_ROOT:RUN=${RUN:-} in
    *,*)
        echo "ERROR 2: OUTPUT_ROOT=$OUTPUT_ROOT RUN=${RUN:-} -> without a comma: MEMBERS and RUNS list folders of runs by it" >&2
        exit 2
        ;;
esac
if [ -n "${DATASET:-}" ] && { [ -e "data/$DATASET.py" ] || [ -e "data/$DATASET/__init__.py" ]; }; then
    echo "ERROR 2: DATASET=$DATASET is the name of a module or room in data/ -> choose another name" >&2
    exit 2
fi

# A variable that is nearly one of ours was meant to be it.
VARIABLES="ACCELERATE_CONFIG ASK_ARGS ASSIGN_ARGS CAPTIONS CHECKPOINT CLIP CONFIG DATASET DATA_ROOT DISTILL_ARGS DRY_RUN EMBED ENGINE EMBEDDINGS EVALUATE_ARGS EXAMPLES EXPAND_ARGS GALLERY_ARGS GRADE_ARGS HISTORY_ARGS IMAGE_MODEL IMPORT_ARGS INSTRUCT_MODE ITEM_IMAGES LAUNCH_ID MASTER_ADDR MASTER_PORT MAKER MEMBERS MODE MODEL NAME NARRATIVE_ARGS
NODE_RANK NUM_GPUS NUM_NODES OPENSORA_HOME OPENSORA_PYTHON OUTPUT_ROOT OVERWRITE PAPER PLAN PLAN_MINUTES PLAN_SPEED PORT PUBLISHED PYTHON QUANTIZER RAW REASONING RECOMMEND_ARGS REFERENCE RUN RUNS SEARCH_ARGS SEED SEQUENTIAL SIDS SIZE SOURCE SPLIT SPLITS STAGE STAGES SUBMIT TAGS TASKS TEACHER TEACHER_SEEDS TIDS TRACKER TREND VIDEO_MODEL WEIGHTS"

# differs_by_a_slip A B: one letter too many, too few or wrong, or two neighbours swapped.
differs_by_a_slip() {
    local a=$1 b=$2
    while [ -n "$a" ] && [ "${a:0:1}" = "${b:0:1}" ]; do a=${a:1} b=${b:1}; done
    while [ -n "$a" ] && [ -n "$b" ] && [ "${a: -1}" = "${b: -1}" ]; do a=${a%?} b=${b%?}; done
    [ "${#a}" -le 1 ] && [ "${#b}" -le 1 ] || { [ "${#a}" -eq 2 ] && [ "$b" = "${a:1:1}${a:0:1}" ]; }
}

refuse_misspelt_variables() {
    local name known
    for name in $(compgen -e); do
        case " PAGER MODELS CONFIGS $(echo $VARIABLES) " in *" $name "*) continue ;; esac
        for known in $VARIABLES; do
            if [ "${#known}" -ge 5 ] && [ $((${#name} - ${#known})) -ge -1 ] && [ $((${#name} - ${#known})) -le 1 ] \
                && differs_by_a_slip "$name" "$known"; then
                echo "ERROR 2: the environment has $name, which nothing reads -> $known was meant? (or: unset $name)" >&2
                exit 2
            fi
        done
    done
}
refuse_misspelt_variables

# Which recipe, data and run: the folder $CONFIG of a paper holds what a data set changes in its recipe.
CONFIG=${CONFIG:-${DATASET:-}}
if [ -n "${PAPER:-}" ] && [ ! -d "configs/$PAPER" ]; then
    echo "ERROR 2: there is no configs/$PAPER -> PAPER is a folder of configs/:" \
        "$(cd configs && ls -d */ | tr -d / | grep -v '^accelerate$\|^template_\|^__pycache__$' | xargs)" >&2
    exit 2
fi
LIKE=${PAPER:-}                     # the paper whose recipes stand in for those that this one lacks
if [ -n "$LIKE" ] && [ -f "configs/$PAPER/like" ]; then LIKE=$(<"configs/$PAPER/like"); fi
if [ -n "$LIKE" ] && [ "$CONFIG" != "${DATASET:-}" ] && [ ! -d "configs/$PAPER/$CONFIG" ] && [ ! -d "configs/$LIKE/$CONFIG" ]; then
    echo "ERROR 2: there is no configs/$PAPER/$CONFIG -> make it, or leave CONFIG out" >&2
    exit 2
fi
if [ -n "${PAPER:-}${DATASET:-}" ]; then
    chosen=""
    for variable in PAPER DATASET CONFIG RUN NAME; do
        if [ -n "${!variable:-}" ]; then chosen="$chosen $variable=${!variable}"; fi
    done
    echo "$(basename "$0"):$chosen"
fi

# config_flags NAME: CONFIGS becomes the flags for configs/$PAPER/NAME.yaml (or that of the paper that configs/$PAPER/like names), for
# what configs/$PAPER/$CONFIG changes in it, and for what $PLAN, a folder of sizes that python -m configs.sizes chose, does. How a data
# set is read does not depend on the paper: its prepare.yaml may be in the folder of the other paper too.
config_flags() {
    local file recipe=configs/$PAPER/$1.yaml of_data=configs/$PAPER/$CONFIG/$1.yaml
    if [ ! -f "$recipe" ]; then recipe=configs/$LIKE/$1.yaml; fi
    if [ "$1" = prepare ] && [ ! -f "$of_data" ]; then of_data=configs/$LIKE/$CONFIG/$1.yaml; fi
    CONFIGS=()
    for file in "$recipe" "$of_data" ${PLAN:+"$PLAN/$1.yaml"}; do
        if [ -f "$file" ]; then CONFIGS+=(--config "$file"); fi
    done
    if [ "${#CONFIGS[@]}" -eq 0 ]; then
        local known
        if [ "$1" = prepare ]; then
            known=$(cd configs && find "$PAPER" "$LIKE" -name prepare.yaml | cut -d/ -f2 | sort -u | xargs)
            echo "ERROR 2: no prepare.yaml in configs/$PAPER/$CONFIG -> ${known:+DATASET is one of $known; }for your own tables:" \
                "cp -r configs/template_tables configs/$PAPER/$CONFIG" >&2
            exit 2
        fi
        known=$(cd configs && ls "$PAPER" "$LIKE" "$PAPER/$CONFIG" 2>/dev/null | grep "^${1%%_*}.*[.]yaml$" | sort -u | xargs) || true
        echo "ERROR 2: no $1.yaml in configs/$PAPER or configs/$PAPER/$CONFIG -> there are: ${known:-none of that kind, another PAPER has them}" >&2
        exit 2
    fi
}

# has_recipe NAME: whether the paper, the paper that it is like, or the data set has a NAME.yaml.
has_recipe() {
    [ -f "configs/$PAPER/$1.yaml" ] || [ -f "configs/$LIKE/$1.yaml" ] || [ -f "configs/$PAPER/$CONFIG/$1.yaml" ]
}

# take_plan DIRECTORY: what a plan that is there chose, for this script and those below it; a plan of other data is refused. What the
# environment has set before is left as it is.
take_plan() {
    local sequential=${SEQUENTIAL:-} seeds=${TEACHER_SEEDS:-} trend=${TREND-as planned}
    if [ ! -f "$1/plan.json" ] || [ ! -f "$1/choices.sh" ]; then return; fi      # half a plan is none
    if [ -f "$DATA_ROOT/$DATASET/manifest.json" ]; then
        "${DRY_PYTHON:-$PYTHON}" -m configs.sizes --data "$DATA_ROOT/$DATASET" --output_dir "$1" >/dev/null || exit
    fi
    export PLAN=$1
    source "$1/choices.sh"
    export SEQUENTIAL=${sequential:-$SEQUENTIAL} TEACHER_SEEDS=${seeds:-$TEACHER_SEEDS}
    if [ "$trend" != "as planned" ]; then export TREND=$trend; fi
}

# need_sids: the semantic IDs that the metrics at the end are taken with are there, or nothing is begun. Not asked where nothing is run, where
# there are no data, and where EVALUATE_ARGS names others.
need_sids() {
    local sids=$DATA_ROOT/$DATASET/sids
    if [ -n "${DRY_RUN:-}" ] || [ ! -f "$DATA_ROOT/$DATASET/manifest.json" ] || [ -e "$sids/$SIDS" ]; then return; fi
    case " ${EVALUATE_ARGS:-}" in *" --sids"*) return ;; esac
    echo "ERROR 2: there are no semantic IDs $sids/$SIDS -> SIDS is one of: $(ls "$sids" 2>/dev/null | xargs); 04_build_sids.sh makes more" >&2
    exit 2
}

# list_of WORDS...: them as the list that a flag takes, each in quotes, because a folder may have any character in its name.
list_of() {
    local word listed=""
    for word in "$@"; do
        word=${word//\\/\\\\}
        listed="$listed, \"${word//\"/\\\"}\""
    done
    printf '[%s]' "${listed#, }"
}

# share_flags "MODULE ..." FLAGS...: for scripts of several programs. SHARED becomes the --overwrite among the flags, which all
# of them get; --help prints the help of each and runs nothing.
share_flags() {
    local modules=$1 module
    shift
    SHARED=()
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                for module in $modules; do "$PYTHON" -m "$module" --help; done
                exit 0
                ;;
            --overwrite=*) SHARED=("$1") ;;
            --overwrite)
                SHARED=(--overwrite)
                case ${2:-} in true | false) SHARED+=("$2") ;; esac
                ;;
        esac
        shift
    done
}

# recipe_flags: RECIPE becomes what a model of SIZE needs on a GPU of CARD GB; its accelerate config too, where none is chosen.
recipe_flags() {
    RECIPE=()
    if [ -z "${SIZE:-}" ] && [ -z "${CARD:-}" ]; then return; fi
    if [ -z "${SIZE:-}" ] || [ -z "${CARD:-}" ]; then
        echo "ERROR 2: SIZE=${SIZE:-} CARD=${CARD:-} -> both, as in SIZE=1.7B CARD=24 (bash scripts/doctor.sh names the GPU)" >&2
        exit 2
    fi
    local processes=$((${NUM_GPUS:-1} * ${NUM_NODES:-1})) told
    told=$("${DRY_PYTHON:-$PYTHON}" -m configs.sizes --size "$SIZE" --card "$CARD" --processes "$processes" --flags true)
    read -r -a RECIPE <<<"$told"
    if [ "$processes" -gt 1 ]; then ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-${RECIPE[0]}}; fi
    RECIPE=("${RECIPE[@]:1}")
    echo "SIZE=$SIZE CARD=$CARD: ${RECIPE[*]}"
}

# on_ray PROCESSES TOGETHER MODULE FLAGS...: as tasks of a Ray cluster (ENGINE=ray).
on_ray() {
    local processes=$1 together=$2 command
    shift 2
    command=$("${DRY_PYTHON:-$PYTHON}" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
    "$PYTHON" -m configs.ray_tasks --processes "$processes" --together "$together" --command "$command"
}

# single MODULE FLAGS...: one process, here or as a task of a Ray cluster.
single() {
    case ${ENGINE:-} in
        "") "$PYTHON" -m "$@" ;;
        ray) on_ray 1 false "$@" ;;
        *) refuse_engine "$1" ;;
    esac
}

refuse_engine() {
    echo "ERROR 2: ENGINE=${ENGINE:-} is nothing for $1 -> ray for stages 02, 05, 06, 11, 12 and 13, spark for 01" >&2
    exit 2
}

# Trainers: one process, or NUM_GPUS of them on each of NUM_NODES machines through accelerate.
launch() {
    local code=0 gpus=${NUM_GPUS:-1} nodes=${NUM_NODES:-1} config=${ACCELERATE_CONFIG:-configs/accelerate/ddp.yaml} machines=()
    case ${ENGINE:-}:$1 in
        :*) ;;
        ray:rq.embed_items)
            on_ray "$((gpus * nodes))" true "$@"
            return
            ;;
        ray:infer.* | ray:generation.generate_images)
            on_ray "$((gpus * nodes))" false "$@"
            return
            ;;
        *) refuse_engine "$1" ;;
    esac
    case " $* " in
        *" --plan"*)                # is made by one process, wherever that is
            "$PYTHON" -m "$@"
            return
            ;;
    esac
    if [ "$gpus" -le 1 ] && [ "$nodes" -le 1 ]; then
        if [ -n "${ACCELERATE_CONFIG:-}" ]; then
            echo "ERROR 2: ACCELERATE_CONFIG=$config, but one process would be started -> set NUM_GPUS, or unset it" >&2
            exit 2
        fi
        "$PYTHON" -m "$@"
        return
    fi
    if [ "$nodes" -gt 1 ]; then
        if [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ] || [ "$NODE_RANK" -ge "$nodes" ]; then
            echo "ERROR 2: NUM_NODES=$nodes needs MASTER_ADDR (of machine 0) and NODE_RANK (0 to $((nodes - 1)), this machine's)" >&2
            exit 2
        fi
        # by it the processes of all machines know that a decision in an output directory is one of this start
        LAUNCH_ID=${LAUNCH_ID:-${SLURM_JOB_ID:+$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}}}
        if [ -z "$LAUNCH_ID" ]; then
            echo "ERROR 2: NUM_NODES=$nodes needs LAUNCH_ID, a word that all machines are given and that is another one at every start" >&2
            exit 2
        fi
        export LAUNCH_ID
        machines=(--num_machines "$nodes" --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR"
            --main_process_port "${MASTER_PORT:-29500}")
    fi
    "$PYTHON" -m configs.parallel --config_file "$config"
    # The launcher would die of the notice that its processes get themselves, and it hides their exit code.
    (trap '' USR1; exec "$PYTHON" -m accelerate.commands.launch --config_file "$config" --num_processes "$((gpus * nodes))" \
        ${machines[@]+"${machines[@]}"} -m "$@") || code=$?
    if [ "$code" -ne 0 ]; then exit "$([ -n "$NOTICED" ] && echo 143 || echo "$code")"; fi
}

# alone MODULE FLAGS...: what follows the work of several machines is done on the first of them.
alone() {
    if [ "${NODE_RANK:-0}" -eq 0 ]; then "$PYTHON" -m "$@"; fi
}

# name_media: WRITTEN becomes the name of what stage 12 wrote, MEDIA that of what is made of it.
name_media() {
    WRITTEN=$NAME.$SPLIT
    if [ "$INSTRUCT_MODE" != direct_json_prefix ]; then WRITTEN=$WRITTEN.$INSTRUCT_MODE; fi
    MEDIA=$WRITTEN
    if [ "$SOURCE" != prediction ]; then MEDIA=$MEDIA.$SOURCE; fi
}

# is_dry_run FLAGS...: whether a --dry_run is among them. What reads the output of such a program is not to run.
is_dry_run() {
    case " $* " in *" --dry_run false "*) return 1 ;; *" --dry_run"*) ;; *) return 1 ;; esac
}

# show_media KIND FLAGS...: measures and gallery of what stage 13 or 14 made; nothing after a --dry_run among its flags.
show_media() {
    if is_dry_run "$@"; then return; fi
    # shellcheck disable=SC2086
    alone generation.evaluate_media --media "$OUTPUT_ROOT/$RUN/$1/$MEDIA" --data "$DATA_ROOT/$DATASET" \
        ${CLIP:+--model "$CLIP"} ${ITEM_IMAGES:+--item_images "$ITEM_IMAGES"} \
        --output_dir "$OUTPUT_ROOT/$RUN/gallery/$1.$MEDIA" ${SHARED[@]+"${SHARED[@]}"} $GALLERY_ARGS
}
