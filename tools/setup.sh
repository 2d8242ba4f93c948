#!/usr/bin/env bash
# Fills .venv with all that the demo and the tests need, from OpenMMLab's packages; with FAMILY=onedl, .venv-onedl from
# the OneDL forks. It can be run again at any time, and then skips what is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the ordinary index serves for CUDA 13 (where there is no GPU, too), and its last torch for CUDA 12, in which safe
# loading has no known hole either.
TORCH=2.11.0 TORCHVISION=0.26.0
TORCH12=2.10.0 TORCHVISION12=0.25.0
CUPY=14.2.0

say() { printf '[setup] %s\n' "$*"; }
stop() { printf '[setup] %s\n' "$*" >&2; exit 1; }

# step NAME KEY TEXT COMMAND...: runs the command, unless it has run before with the same key.
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
    stop "No Python 3.10, 3.11 or 3.12 here: install one (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev), or name it: PYTHON=/path/to/python3.11"
}

check_compiler() {
    printf '#include <Python.h>\nint main() { return 0; }\n' |
        "${CXX:-c++}" -x c++ -fsyntax-only "-I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null && return
    command -v "${CXX:-c++}" >/dev/null ||
        stop "No C++ compiler here (${CXX:-c++}): install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"
    stop "The C++ compiler finds no Python.h for $python: install Python's headers (Debian, Ubuntu: apt install python3-dev)"
}

make_venv() {
    "$python" -m venv --clear "$venv" || stop "$python makes no virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

# Given twice, --quiet leaves errors alone: some machines warn of hundreds of index locations.
install() { python -m pip install --quiet --quiet --disable-pip-version-check "$@"; }

install_torch() { install 'setuptools>=77,<81' wheel ninja psutil "torch==$TORCH" "torchvision==$TORCHVISION"; }

# merge FOLDER EXCEPT...: makes one file of the C++ files there. Each takes longer to read torch's headers than for the rest.
merge() {
    local folder=$1 file
    shift
    for file in "$folder"/*.cpp; do
        [[ " $* " == *" $(basename "$file") "* ]] && continue
        mv "$file" "$file.inc"
        printf '#include "%s"\n' "$(basename "$file").inc" >>"$folder/merged.cpp"
    done
}

# The wheel is kept per user, so that another checkout need not build it again.
build_mmcv() {
    local wheels="${XDG_CACHE_HOME:-$HOME/.cache}/mmrednet/$mmcv_key" build sources
    if [ ! -d "$wheels" ]; then
        say "    no wheel of it in $wheels yet: compiling"
        (umask 077; mkdir -p "${wheels%/*}")  # what is compiled and loaded from there is the user's alone
        build=$(mktemp -d "$wheels.XXXXXX")
        trap 'rm -rf "$build"' EXIT
        python -m pip download --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --no-binary :all: --dest "$build" "$mmcv"
        tar -xzf "$build"/*.tar.gz -C "$build"
        sources=("$build"/*/mmcv/ops/csrc/pytorch)
        merge "${sources[0]}" pybind.cpp
        # These define functions or macros of the same names.
        merge "${sources[0]}/cpu" bezier_align.cpp psamask.cpp roi_align.cpp roi_align_rotated.cpp
        # CFLAGS replace the flags that Python was built with (-O3 -DNDEBUG): both are given. Debug information takes half of the time.
        env "CFLAGS=$(python -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') ${CFLAGS-} -g0" MMCV_WITH_OPS=1 "FORCE_CUDA=$force_cuda" "CUDA_VISIBLE_DEVICES=${gpus-}" \
            python -m pip wheel --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --wheel-dir "$build/wheel" "$build"/*/
        # A rename is atomic: an interrupted build leaves nothing that looks finished.
        mv -T "$build/wheel" "$wheels"
        rm -rf "$build"
        trap - EXIT
    fi
    install --no-deps --force-reinstall "$wheels"/*.whl
}

install_toolboxes() {
    # Of CuPy for 12 and for 13, the other would be in the way.
    python -m pip uninstall --quiet --quiet --yes "cupy-cuda$((25 - cuda))x"
    install -r "$requirements" "cupy-cuda${cuda}x==$CUPY"
}

install_mmrednet() {
    local packages=("$venv"/lib/python*/site-packages)
    install --no-build-isolation --no-deps --editable .
    # mim looks for packages where pip installs them. In RECORD first, so that pip removes the link, not what it leads to.
    echo 'mmrednet,,' >>"${packages[0]}"/mmrednet-*.dist-info/RECORD
    ln -sfn "$PWD/mmrednet" "${packages[0]}/mmrednet"
}

# The number before the first point, in what stands behind a pattern.
major() { sed -n "s/.*$1 *\([0-9][0-9]*\)\..*/\1/p" | head -n 1; }

# The driver and nvcc say which CUDA: with either of them at 12, a build for 13 would see no GPU or lack mmcv's operators.
look_for_gpu() {
    local report driver compiler
    report=$(nvidia-smi 2>/dev/null) || return 0
    driver=$(major 'CUDA[A-Z ]* Version *:' <<<"$report")
    compiler=$(nvcc --version 2>/dev/null | major release) || true
    if [ "${driver:-13}" -lt 12 ]; then
        say "A GPU, but its driver knows CUDA $driver alone, and torch needs 12: update the driver and run this again to use the GPU."
        return
    fi
    if [ "$driver" = 12 ] || [ "$compiler" = 12 ]; then
        cuda=12 TORCH=$TORCH12 TORCHVISION=$TORCHVISION12
    fi
    if [ "$compiler" = "$cuda" ]; then
        gpus=${CUDA_VISIBLE_DEVICES-0} force_cuda=1 target='the CPU and CUDA' minutes='30 minutes on 2 cores'
    else
        say "A GPU, but no nvcc of CUDA $cuda${compiler:+ (it is of $compiler)}: mmcv's operators are built for the CPU alone. For training on the GPU, install that toolkit and run this again."
    fi
}

case ${FAMILY-} in
    '') mmcv=mmcv==2.1.0 toolboxes='mmpretrain, mmdet, mmsegmentation' ;;
    onedl) mmcv=onedl-mmcv==2.3.6 toolboxes='the other OneDL forks' ;;
    *) stop "FAMILY is '$FAMILY': it should be onedl, for the OneDL forks, or unset, for OpenMMLab's packages" ;;
esac
venv=.venv${FAMILY:+-$FAMILY} requirements=tools/requirements-${FAMILY:-openmmlab}.txt

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    supported "$venv/bin/python" || stop "The Python in $venv is not 3.10, 3.11 or 3.12: remove $venv and run this again"
    python=$venv/bin/python
else
    find_python
fi
check_compiler

cuda=13 gpus='' force_cuda=0 target='the CPU' minutes='4 minutes on 2 cores'
look_for_gpu

if [ "$python" != "$venv/bin/python" ]; then
    say "Making $venv with $("$python" --version) (seconds)"
    make_venv
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"

tag=$(python -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')-$(uname -m)
mmcv_key=${mmcv/==/-}-torch-$TORCH-$tag-$([ "$force_cuda" = 1 ] && echo cuda || echo cpu)-optimized
step torch "$TORCH $TORCHVISION" "Installing torch $TORCH (about 2 minutes, 5 GB)" install_torch
step mmcv "$mmcv_key" "Installing ${mmcv/==/ } with its operators for $target (about $minutes, once per user; then seconds)" build_mmcv
step toolboxes "$cuda $(cat tools/requirements.txt "$requirements" | cksum)" "Installing $toolboxes and CuPy (about 2 minutes)" install_toolboxes
step mmrednet "$(cksum <setup.cfg)$PWD" 'Installing mmrednet in place (seconds)' install_mmrednet
say "Ready: $venv holds all that is needed"
