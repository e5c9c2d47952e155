#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with one and without a network, in under nine minutes:
# build with CUDA, GPU tests, loss, pooling and top-k benchmarks, compute-sanitizer, Nsight Compute.
#
#     OUT=folder PYTHON=python3 benchmarks/device.sh
#
# JSON, the log and the profiles land in $OUT (default benchmarks/results); a short table comes
# last. Needs torch, triton, numpy, safetensors, pillow, pytest, pytest-benchmark, hypothesis,
# scikit-build-core, pybind11, CMake and nvcc. Nothing is installed but into a temporary folder, and
# the GPU's settings stay as they are. The exit status is 1 when the build, a test, the sanitizer or
# a benchmark's own check fails. Without a CUDA device what needs one is skipped.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=${OUT:-benchmarks/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$out/device.log
: >"$log"
summary=()
failed=0
total=525

have_device() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

# step NAME SECONDS COMMAND...: run it with its own time limit inside the whole one; its output goes
# to the log, its last lines to the terminal. Returns its status.
step() {
    local name=$1 limit=$2 left status start=$SECONDS
    shift 2
    left=$((total - SECONDS))
    if ((left < 5)); then
        summary+=("$name|out of time|0")
        return 0
    fi
    ((limit = limit < left ? limit : left))
    printf '\n== %s (at %s s, %s s at most)\n' "$name" "$SECONDS" "$limit" | tee -a "$log"
    timeout --kill-after=5 "$limit" "$@" >"$work/step" 2>&1
    status=$?
    cat "$work/step" >>"$log"
    tail -n "${TAIL:-5}" "$work/step"
    case $status in
        0) summary+=("$name|ok|$((SECONDS - start))") ;;
        124 | 137) summary+=("$name|cut off after $limit s|$((SECONDS - start))") ;;
        *) summary+=("$name|FAILED ($status)|$((SECONDS - start))") ;;
    esac
    return "$status"
}

# must STEP...: a step whose failure, being cut off too, fails the script.
must() { step "$@" || failed=1; }

skip() { summary+=("$1|$2|0"); }

report() {
    printf '\n%-28s %-24s %s\n' step result seconds
    local line
    for line in "${summary[@]}"; do
        IFS='|' read -r name result seconds <<<"$line"
        printf '%-28s %-24s %s\n' "$name" "$result" "$seconds"
    done
    printf 'total %s s; results in %s\n' "$SECONDS" "$out"
}

device=0
have_device && device=1
"$python" - <<'PYTHON' | tee -a "$log"
import sys, torch, triton
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
print(f"python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}, {name}")
PYTHON

options=(-C cmake.define.PVP_FAST_CUDA=AUTO)
if ((device)); then
    options=(-C cmake.define.PVP_FAST_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native)
fi
if ! step build 100 "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation \
    --target "$work/site" "${options[@]}" .; then
    failed=1
    cat "$work/step"
    report
    exit 1
fi
# The built package comes first, and no interpreter puts the checkout before it.
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
must import 30 "$python" -c '
import sys, pvp_fast, pvp_fast.losses, pvp_fast.losses.pooling, pvp_fast.topk.index
from pvp_fast import _C
print(_C.__file__, _C.build_info())
sys.exit(not _C.__file__.startswith(sys.argv[1]))' "$work/site"

mapfile -t gpu_tests < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
must "GPU tests" 150 "$python" -m pytest -q -p no:cacheprovider -m gpu "${gpu_tests[@]}"

if ((!device)); then
    must "benchmarks, tiny, CPU" 120 "$python" benchmarks/bench_losses.py --quick --rounds 3 \
        --losses asl ranking clip pool --seconds 60
    must "sanitizer script" 60 "$python" tests/native/sanitize/gpu_small.py
    for name in "loss benchmark" "top-k benchmark" memcheck racecheck ncu; do
        skip "$name" "no CUDA device"
    done
    report
    echo "no CUDA device: nothing was measured"
    exit "$failed"
fi

TAIL=45 must "loss benchmark" 130 "$python" benchmarks/bench_losses.py --seconds 100 --rounds 7 \
    --losses asl ranking siglip clip pool --categories 80 1000 20000 --batches 4096 \
    --json "$out/gpu_losses.json"
TAIL=40 must "top-k benchmark" 50 "$python" benchmarks/bench_topk_gpu.py \
    --categories 1000 100000 1000000 --json "$out/gpu_topk.json"

if command -v compute-sanitizer >/dev/null; then
    # Without the caching allocator every tensor is an allocation with bounds of its own.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
        must "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$python" tests/native/sanitize/gpu_small.py
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    skip memcheck "no compute-sanitizer"
    skip racecheck "no compute-sanitizer"
fi

if command -v ncu >/dev/null; then
    : >"$out/ncu.txt"
    for name in elementwise pool topk; do
        kernel=^_${name}_kernel
        [ "$name" = topk ] && kernel=scan
        # Clocks stay as they are. A profile that cannot be taken fails nothing.
        TAIL=12 step "ncu $name" 30 ncu --clock-control none --section SpeedOfLight \
            --section Occupancy --kernel-name "regex:$kernel" --launch-skip 1 --launch-count 1 \
            "$python" benchmarks/profile_kernels.py "$name"
        cat "$work/step" >>"$out/ncu.txt"
    done
else
    skip ncu "not installed"
fi

report
exit "$failed"
