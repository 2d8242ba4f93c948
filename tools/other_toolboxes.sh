#!/usr/bin/env bash
# Makes .venv-others, an environment with six more OpenMMLab toolboxes, timm, segmentation_models_pytorch and
# Ultralytics, and tests RedNet and Involution there:
#     bash tools/other_toolboxes.sh
# torch, mmcv and mmdet come from .venv, which tools/setup.sh makes. This script installs nothing in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || { echo 'there is no .venv: run bash tools/setup.sh first' >&2; exit 2; }

.venv/bin/python -m venv --clear --without-pip .venv-others
python=.venv-others/bin/python
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages=$(site $python)
echo "import site; site.addsitedir('$(site .venv/bin/python)')" >"$packages/venv.pth"
# --no-deps, because the requirements include an older NumPy, and packages that only data sets and viewers need.
install() { "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps "$@"; }
install mmpose==1.3.2 mmaction2==1.2.0 mmrotate-dev==1.0.1 mmyolo==0.6.0 mmocr==1.0.1 mmdet3d==1.4.0 \
    'cython<3.1' decord imageio imgaug==0.4.0 json_tricks lazy_loader llvmlite lmdb lyft-dataset-sdk munkres numba \
    nuscenes-devkit plyfile pyclipper pyquaternion rapidfuzz scikit-image tifffile trimesh
install timm==1.0.31 segmentation-models-pytorch==0.6.0 ultralytics==8.4.190 ultralytics-thop anyio h11 \
    httpcore2 httpx2 huggingface_hub truststore
# The wheel of xtcocotools is built for NumPy 1.
install --no-binary xtcocotools --no-build-isolation xtcocotools

# mmyolo and mmocr refuse mmcv 2.1 and mmdet 3.3, but work with them.
sed -i "s/mmcv_maximum_version = '2.1.0'/mmcv_maximum_version = '2.2.0'/" "$packages/mmyolo/__init__.py"
sed -i "s/mmdet_maximum_version = '3.2.0'/mmdet_maximum_version = '3.4.0'/" "$packages/mmocr/__init__.py"
# mmaction2's wheel lacks the folder of this localizer.
sed -i "/drn/d; s/, 'DRN'//" "$packages/mmaction/models/localizers/__init__.py"
# NumPy 2 has no sctypes.
sed -i "s/np\.sctypes\[\"\(.*\)\"\]/{t for t in np.sctypeDict.values() if t.__name__.startswith('\1')}/" \
    "$packages/imgaug/imgaug.py"

"$python" -m pytest -q -p no:cacheprovider --run-slow tests/test_other_toolboxes.py
