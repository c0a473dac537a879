# Sourced by env.sh, and by scripts that begin before there is an environment; from the repository root. Not a program.

# script_head: the comment at the top of the running script: what it does, reads and writes, its variables.
script_head() {
    local folder file
    for folder in . scripts scripts/reproduce; do
        file=$folder/$(basename "$0")
        if [ -f "$file" ]; then
            sed -n '2,${/^#/!q;s/^# \{0,1\}//;p}' "$file"
            return
        fi
    done
}

# no_flags "$@": for a script that is told everything by variables. --help prints its head; any other word is an error. --overwrite is
# what the programs below it advise, so it is told how that is said here.
no_flags() {
    local instead="bash $0 --help names them"
    case ${1:-} in
        "") if [ $# -eq 0 ]; then return; fi ;;
        -h | --help)
            script_head
            exit 0
            ;;
        --overwrite*)
            instead="give it to the script of that stage (variables: bash $0 --help)"
            if grep -q '^OVERWRITE=' "$0"; then instead="OVERWRITE=1 bash $0 (other variables: bash $0 --help)"; fi
            ;;
    esac
    echo "ERROR 2: $(basename "$0") takes variables and no flags, it was given: $1 -> $instead" >&2
    exit 2
}
