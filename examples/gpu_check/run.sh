#!/bin/sh
# Checks and times the CUDA kernels on this machine's GPU. Ends within eight minutes; needs neither Rust nor a network.
#
#     ./run.sh [--hopper] [RESULTS]
#
# Results go to RESULTS, gpu-check.json if none is named. With --hopper, the kernels that are for Hopper alone are checked.
# The exit status is 0 only if there is a GPU and every step passed.
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mode=--run
if [ "${1:-}" = --hopper ]; then
    mode=--hopper
    shift
fi
results=${1:-gpu-check.json}

# Whatever happens from here on, there are results to read.
fail() {
    echo "GPU check: $1" >&2
    printf '{ "check": "gpu", "passed": false, "card": null, "error": "%s", "steps": [] }\n' "$1" > "$results"
    exit 1
}
: > "$results" || exit 1
case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-amd64) ;;
    *) fail "these executables are for x86-64 Linux, this is $(uname -s) $(uname -m)" ;;
esac
# Archives may lose the mode.
chmod +x "$folder"/bin/* 2> /dev/null
"$folder/bin/gpu_check" "$mode" "$folder" "$results"
status=$?
if [ ! -s "$results" ]; then
    fail "the executables do not start here; they need glibc @GLIBC@ or newer"
fi
exit $status
