#!/usr/bin/env bash
# Makes .venv with all that the demo and the tests need, from OpenMMLab's packages. FAMILY=onedl makes .venv-onedl from
# the OneDL forks. You can interrupt it and run it again. It skips the steps that are done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# torch for CUDA 13, which also runs without a GPU, and the last torch for CUDA 12 on PyPI.
TORCH=2.11.0 TORCHVISION=0.26.0
TORCH12=2.10.0 TORCHVISION12=0.25.0
CUPY=14.2.0

# A user's configuration may contain `user = true`, which pip refuses in a virtual environment.
export PIP_USER=0

say() { printf '[setup] %s\n' "$*"; }
stop() { printf '[setup] %s\n' "$*" >&2; exit 1; }

# step NAME KEY TEXT COMMAND...: runs COMMAND, unless it has already succeeded with the same KEY.
step() {
    local stamp="$venv/.$1" key=$2 text=$3
    shift 3
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
    say "$text"
    "$@"
    printf '%s' "$key" >"$stamp"
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.10}; do
        supported "$candidate" && python=$candidate && return
    done
    stop "There is no Python 3.10, 3.11 or 3.12: install one (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev), or give its path: PYTHON=/path/to/python3.11"
}

check_compiler() {
    printf '#include <Python.h>\nint main() { return 0; }\n' |
        "${CXX:-c++}" -x c++ -fsyntax-only "-I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null && return
    command -v "${CXX:-c++}" >/dev/null ||
        stop "There is no C++ compiler (${CXX:-c++}): install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"
    stop "The C++ compiler finds no Python.h for $python: install Python's headers (Debian, Ubuntu: apt install python3-dev)"
}

make_venv() {
    "$python" -m venv --clear "$venv" || stop "$python could not make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

# --quiet twice shows errors only. --no-compile saves time: Python compiles the modules that are imported, which are few.
install() { python -m pip install --quiet --quiet --disable-pip-version-check --no-compile "$@"; }

# This installs all packages that the build of mmcv imports, so that the toolboxes' step does not change them.
install_torch() {
    install wheel ninja psutil "torch==$TORCH" "torchvision==$TORCHVISION" -r <(grep -E '^(numpy|setuptools)' tools/requirements.txt)
}

# merge FOLDER EXCEPT...: merges the C++ files there into one. Most of the time of each file is for torch's headers.
merge() {
    local folder=$1 file
    shift
    for file in "$folder"/*.cpp; do
        [[ " $* " == *" $(basename "$file") "* ]] && continue
        mv "$file" "$file.inc"
        printf '#include "%s"\n' "$(basename "$file").inc" >>"$folder/merged.cpp"
    done
}

# Each user has a cache of the wheel, so that another checkout does not compile it again.
build_mmcv() {
    local wheels="${XDG_CACHE_HOME:-$HOME/.cache}/mmrednet/$mmcv_key" sources
    if [ ! -d "$wheels" ]; then
        say "    $wheels does not exist yet: compiling"
        (umask 077; mkdir -p "${wheels%/*}")  # code is loaded from there, so nobody else may write to it
        build=$(mktemp -d "$wheels.XXXXXX")
        python -m pip download --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --no-binary :all: --dest "$build" --requirement <(echo "$mmcv --hash=sha256:$sha256")
        tar -xzf "$build"/*.tar.gz -C "$build"
        sources=("$build"/*/mmcv/ops/csrc/pytorch)
        merge "${sources[0]}" pybind.cpp
        # The excepted files define functions or macros with the same names.
        merge "${sources[0]}/cpu" bezier_align.cpp psamask.cpp roi_align.cpp roi_align_rotated.cpp
        # CFLAGS replace the flags that Python was built with (-O3 -DNDEBUG), so both are given. -g0 halves the time.
        env "CFLAGS=$(python -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') ${CFLAGS-} -g0" MMCV_WITH_OPS=1 "FORCE_CUDA=$force_cuda" "CUDA_VISIBLE_DEVICES=${gpus-}" \
            python -m pip wheel --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --wheel-dir "$build/wheel" "$build"/*/
        # A rename is atomic: an interrupted build leaves nothing that looks finished.
        mv -T "$build/wheel" "$wheels"
        rm -rf "$build"
    fi
    install --no-deps --force-reinstall "$wheels"/*.whl
}

install_toolboxes() {
    # CuPy for CUDA 12 and CuPy for CUDA 13 cannot be installed together.
    python -m pip uninstall --quiet --quiet --yes "cupy-cuda$((25 - cuda))x"
    install -r "$requirements" "cupy-cuda${cuda}x==$CUPY"
}

install_mmrednet() {
    local packages=("$venv"/lib/python*/site-packages)
    install --no-build-isolation --no-deps --editable .
    # mim looks for packages in this folder. RECORD lists the link, so that pip removes the link, not its target.
    echo 'mmrednet,,' >>"${packages[0]}"/mmrednet-*.dist-info/RECORD
    ln -sfn "$PWD/mmrednet" "${packages[0]}/mmrednet"
}

# major PATTERN: prints the major version that follows the pattern in the input.
major() { sed -n "s/.*$1 *\([0-9][0-9]*\)\..*/\1/p" | head -n 1; }

# Chooses CUDA 12 or 13. If the driver or nvcc is for 12, a build for 13 finds no GPU or lacks mmcv's CUDA operators.
look_for_gpu() {
    local report driver compiler
    report=$(nvidia-smi 2>/dev/null) || return 0
    driver=$(major 'CUDA[A-Z ]* Version *:' <<<"$report")
    compiler=$(nvcc --version 2>/dev/null | major release) || true
    if [ "${driver:-13}" -lt 12 ]; then
        say "There is a GPU, but its driver supports only CUDA $driver, and torch needs 12: update the driver and run this again to use the GPU."
        return
    fi
    if [ "$driver" = 12 ] || [ "$compiler" = 12 ]; then
        cuda=12 TORCH=$TORCH12 TORCHVISION=$TORCHVISION12
    fi
    if [ "$compiler" = "$cuda" ]; then
        gpus=${CUDA_VISIBLE_DEVICES-0} force_cuda=1 target='the CPU and CUDA' minutes='30 minutes on 2 cores'
    else
        say "There is a GPU, but no nvcc of CUDA $cuda:${compiler:+ it is of $compiler.} mmcv's operators are built for the CPU only. To train on the GPU, install that toolkit and run this again."
    fi
}

case ${FAMILY-} in
    '')
        mmcv=mmcv==2.1.0 toolboxes='mmpretrain, mmdet, mmsegmentation'
        sha256=d387bcab66b467479b6660310e23746cfc79c6e57acf04094680adb499a5cd3f ;;
    onedl)
        mmcv=onedl-mmcv==2.3.6 toolboxes='the other OneDL forks'
        sha256=8704978a3d492b15cc058742ac3165bd1bcc2dd20678da9ed39e0da3048e3045 ;;
    *) stop "FAMILY is '$FAMILY': it should be onedl (the OneDL forks) or unset (OpenMMLab's packages)" ;;
esac
venv=.venv${FAMILY:+-$FAMILY} requirements=tools/requirements-${FAMILY:-openmmlab}.txt

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    supported "$venv/bin/python" || stop "The Python in $venv is not 3.10, 3.11 or 3.12: remove $venv and run this again"
    python=$venv/bin/python
else
    find_python
fi
check_compiler

cuda=13 gpus='' force_cuda=0 target='the CPU' minutes='2 minutes on 2 cores'
look_for_gpu

if [ "$python" != "$venv/bin/python" ]; then
    say "Making $venv with $("$python" --version) (seconds)"
    make_venv
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"

tag=$(python -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')-$(uname -m)
mmcv_key=${mmcv/==/-}-torch-$TORCH-$tag-$([ "$force_cuda" = 1 ] && echo cuda || echo cpu)-optimized
step torch "$TORCH $TORCHVISION" "Installing torch $TORCH (1 to 2 minutes, 5 GB)" install_torch

# The toolboxes are downloaded while mmcv compiles. The job has its own process group, which ends with this script.
build='' job=''
clean_up() {
    [ -z "$job" ] || kill -- "-$job" 2>/dev/null || true
    rm -rf "${build:+"$build"}"
}
trap clean_up EXIT
set -m
step toolboxes "$cuda $(cat tools/requirements.txt "$requirements" | cksum)" "Installing $toolboxes and CuPy (1 to 2 minutes)" install_toolboxes &
job=$!
set +m
step mmcv "$mmcv_key" "Installing ${mmcv/==/ } with its operators for $target (about $minutes, once per user; then seconds)" build_mmcv
wait "$job" || stop 'The toolboxes were not installed: pip printed the reason above'
job=''
step mmrednet "$(cksum <setup.cfg)$PWD" 'Installing mmrednet in place (seconds)' install_mmrednet
say "Ready: everything is installed in $venv"
