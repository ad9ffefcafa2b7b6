# Shared by packaging/run and packaging/test: configure and build quietly, with logs in build/log.
# shellcheck shell=bash
# Set before it is sourced: root, the folder of the repository. All words go to stderr, so that
# stdout stays the program's, and nothing here reads stdin.

log_dir="${root:?}/build/log"

say() { printf '%s\n' "$*" >&2; }

# Parallel jobs: one a core, and 1.5 GB of free memory for each (the largest sources need that).
parallel_jobs() {
    local cores by_memory
    cores=$(nproc)
    by_memory=$(awk '/^MemAvailable:/ { print int($2 / 1500000) }' /proc/meminfo 2>/dev/null || true)
    if [ "${by_memory:-1}" -lt "$cores" ]; then cores=${by_memory:-1}; fi
    if [ "$cores" -lt 1 ]; then cores=1; fi
    printf '%s\n' "$cores"
}

# Passes the lines of a build on to the log; on a terminal shows the last step in one line.
show_progress() {
    local log=$1 line columns
    if [ ! -t 2 ]; then
        cat >>"$log"
        return
    fi
    columns=$(tput cols 2>/dev/null || echo 80)
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case "$line" in
            \[*) printf '\r%-*.*s' "$((columns - 1))" "$((columns - 1))" "$line" >&2 ;;
        esac
    done
    printf '\r%*s\r' "$((columns - 1))" '' >&2
}

# quietly LOG COMMAND...: runs COMMAND with its output in build/log/LOG.log, shown if it fails.
quietly() {
    local log="$log_dir/$1.log"
    shift
    mkdir -p "$log_dir"
    : >"$log"
    if "$@" </dev/null 2>&1 | show_progress "$log"; then return 0; fi
    tail -n 200 "$log" >&2
    say "error: the step above failed; all of its output is in $log"
    return 1
}

# True where build/PRESET was configured completely, and for this folder (not one it was copied from).
is_configured() {
    local folder="$root/build/$1"
    [ -e "$folder/build.ninja" ] || [ -e "$folder/Makefile" ] || return 1
    grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$folder/CMakeCache.txt" 2>/dev/null
}

# configure PRESET [-DNAME=VALUE...]
configure() {
    local preset=$1 arguments=()
    shift
    is_configured "$preset" || arguments+=(--fresh)
    command -v ninja >/dev/null || arguments+=(-G "Unix Makefiles")
    quietly "$preset-configure" cmake -S "$root" --preset "$preset" "${arguments[@]}" "$@"
}

# build PRESET [TARGET...]
build() {
    local preset=$1
    shift
    local targets=()
    if [ $# -gt 0 ]; then targets=(--target "$@"); fi
    quietly "$preset-build" cmake --build "$root/build/$preset" \
        --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(parallel_jobs)}" "${targets[@]}"
}

# One build at a time in this folder: a second caller waits for the first.
lock_build() {
    mkdir -p "$root/build"
    exec 9>"$root/build/.lock"
    flock -n 9 || {
        say "Waiting for another build in $root/build."
        flock 9
    }
}
unlock_build() { exec 9>&-; }

# Preprocessed sources are the same in all build folders once paths are taken from the root, so that
# ccache compiles them once.
export CCACHE_BASEDIR="$root"
