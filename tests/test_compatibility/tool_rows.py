"""The toolboxes' command-line tools, run as their users run them: slow, since each is a process or two."""

import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmcv
import pytest
import torch
from test_compatibility.rows import Network, NotApplicable, rows_of
from test_compatibility.toolbox_rows import files, picture
from torch.torch_version import TorchVersion

row = rows_of('Tools of the toolboxes, as processes', slow=True)


def run(network, *command):
    """Runs mim in the network's folder; returns what it printed."""
    result = subprocess.run(
        [sys.executable, '-m', 'mim', *map(str, command)],
        capture_output=True,
        text=True,
        cwd=network.folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'},
    )
    text = result.stdout + result.stderr
    if result.returncode or 'Traceback' in text:
        # The tool's error; mim's, that the tool has failed, comes after it.
        errors = re.findall(r'^(?!subprocess\.)(?:\w+\.)*\w*[Ee]rror\b.*', text, re.MULTILINE)
        raise RuntimeError(errors[-1] if errors else text.strip()[-200:])
    return text


def needs(package, below):
    """Skips a row whose tool asks for a package, in a version that it knows."""
    try:
        found = TorchVersion(version(package))
    except PackageNotFoundError:
        found = None
    if found is None or found >= below:
        pytest.skip(f'the tool needs {package}<{below}')


def image(network):
    mmcv.imwrite(picture(), str(network.folder / 'image.png'))
    return 'image.png'


def predictions(network, scope):
    """Returns the paths of the config, of the checkpoint, and of a test's predictions, made once."""
    shared = Network(network.name, Path(network.data) / f'{network.name}-{scope}', network.data)
    config, checkpoint = shared.folder / f'{scope}.py', shared.folder / f'{scope}.pth'
    out = shared.folder / 'predictions.pkl'
    if not out.is_file():
        shared.folder.mkdir(exist_ok=True)
        files(shared, scope)
        run(shared, 'test', scope, config, '--checkpoint', checkpoint, '--out', out)
    return config, checkpoint, out


def trained(network, scope):
    """Trains with mim; returns the path of the log."""
    config, _ = files(network, scope)
    run(network, 'train', scope, config, '--work-dir', 'trained', '--cfg-options', 'log_level=INFO')
    assert (network.folder / 'trained' / 'iter_2.pth').is_file()
    return next(network.folder.glob('trained/*/vis_data/scalars.json'))


def print_config(network, scope):
    assert 'depth=50' in run(network, 'run', scope, 'print_config', files(network, scope)[0])


def flops(network, scope):
    shape = [] if scope == 'mmdet' else ['--shape', '64', '64']
    text = run(network, 'run', scope, 'get_flops', files(network, scope)[0], *shape)
    assert 'Flops' in text and 'Params' in text


def publish(network, scope):
    run(network, 'run', scope, 'publish_model', files(network, scope)[1], 'published.pth')
    (path,) = network.folder.rglob('published*-*.pth')
    assert 'state_dict' in torch.load(path)


def browse(network, scope):
    run(network, 'run', scope, 'browse_dataset', files(network, scope)[0], '--output-dir', 'browsed', '--not-show')
    assert list((network.folder / 'browsed').rglob('*.*'))


@row
def mmpretrain_mim(network: Network):
    """`mim train mmpretrain`, then `mim run mmpretrain analyze_logs plot_curve`"""
    log = trained(network, 'mmpretrain')
    run(network, 'run', 'mmpretrain', 'analyze_logs', 'plot_curve', log, '--keys', 'loss', '--out', 'loss.png')
    assert (network.folder / 'loss.png').is_file()


@row
def mmdet_mim(network: Network):
    """`mim train mmdet`, then `mim run mmdet analyze_logs plot_curve`"""
    needs('seaborn', '1')
    log = trained(network, 'mmdet')
    run(network, 'run', 'mmdet', 'analyze_logs', 'plot_curve', log, '--keys', 'loss', '--out', 'loss.png')
    assert (network.folder / 'loss.png').is_file()


@row
def mmseg_mim(network: Network):
    """`mim train mmseg`, then `mim run mmseg analyze_logs`"""
    needs('seaborn', '1')
    log = trained(network, 'mmseg')
    run(network, 'run', 'mmseg', 'analyze_logs', log, '--keys', 'loss', '--out', 'loss.png')


@row
def mmpretrain_cam(network: Network):
    """`mim run mmpretrain vis_cam`: a class activation map of the last stage"""
    needs('grad-cam', '1.5')
    config, checkpoint = files(network, 'mmpretrain')
    target = ['--target-layers', 'backbone.layer2', '--save-path', 'cam.png']
    run(network, 'run', 'mmpretrain', 'vis_cam', image(network), config, checkpoint, *target)
    assert (network.folder / 'cam.png').is_file()


@row
def mmpretrain_cam_default(network: Network):
    """`mim run mmpretrain vis_cam` without `--target-layers`: it finds the last norm layer"""
    needs('grad-cam', '1.5')
    config, checkpoint = files(network, 'mmpretrain')
    for method in ('GradCAM', 'EigenCAM'):
        options = ['--method', method, '--save-path', f'{method}.png']
        run(network, 'run', 'mmpretrain', 'vis_cam', image(network), config, checkpoint, *options)
        assert (network.folder / f'{method}.png').is_file()


@row
def mmpretrain_tsne(network: Network):
    """`mim run mmpretrain vis_tsne`"""
    needs('scikit-learn', '1.7')
    config, checkpoint = files(network, 'mmpretrain')
    options = ['--checkpoint', checkpoint, '--perplexity', '2', '--work-dir', 'tsne']
    run(network, 'run', 'mmpretrain', 'vis_tsne', config, *options)


@row
def mmpretrain_browse(network: Network):
    """`mim run mmpretrain browse_dataset`"""
    browse(network, 'mmpretrain')


@row
def mmpretrain_scheduler(network: Network):
    """`mim run mmpretrain vis_scheduler`"""
    options = ['--dataset-size', '4', '--not-show', '--save-path', 'lr.png']
    run(network, 'run', 'mmpretrain', 'vis_scheduler', files(network, 'mmpretrain')[0], *options)


@row
def mmpretrain_print(network: Network):
    """`mim run mmpretrain print_config`"""
    print_config(network, 'mmpretrain')


@row
def mmpretrain_flops(network: Network):
    """`mim run mmpretrain get_flops`"""
    flops(network, 'mmpretrain')


@row
def mmpretrain_publish(network: Network):
    """`mim run mmpretrain publish_model`"""
    publish(network, 'mmpretrain')


@row
def mmpretrain_matrix(network: Network):
    """`mim run mmpretrain confusion_matrix`, of a checkpoint"""
    config, checkpoint = files(network, 'mmpretrain')
    run(network, 'run', 'mmpretrain', 'confusion_matrix', config, checkpoint, '--out', 'matrix.pkl')
    assert pickle.loads((network.folder / 'matrix.pkl').read_bytes()).shape == (3, 3)


@row
def mmpretrain_results(network: Network):
    """`mim test mmpretrain --out`, then `mim run mmpretrain analyze_results` and `eval_metric`"""
    config, _, out = predictions(network, 'mmpretrain')
    run(network, 'run', 'mmpretrain', 'analyze_results', config, out, '--out-dir', 'analyzed', '--topk', '2')
    assert list((network.folder / 'analyzed').rglob('*.*'))
    run(network, 'run', 'mmpretrain', 'eval_metric', out, '--metric', 'type=Accuracy')


@row
def mmpretrain_folds(network: Network):
    """`mim run mmpretrain kfold-cross-valid`, the first of two folds"""
    config = files(network, 'mmpretrain')[0]
    options = ['--num-splits', '2', '--fold', '0', '--work-dir', 'folds', '--no-persistent-workers']
    run(network, 'run', 'mmpretrain', 'kfold-cross-valid', config, *options)


@row
def mmdet_browse(network: Network):
    """`mim run mmdet browse_dataset`"""
    browse(network, 'mmdet')


@row
def mmdet_print(network: Network):
    """`mim run mmdet print_config`"""
    print_config(network, 'mmdet')


@row
def mmdet_flops(network: Network):
    """`mim run mmdet get_flops`"""
    flops(network, 'mmdet')


@row
def mmdet_publish(network: Network):
    """`mim run mmdet publish_model`"""
    publish(network, 'mmdet')


@row
def mmdet_benchmark(network: Network):
    """`mim run mmdet benchmark --task inference --fuse-conv-bn`"""
    if not torch.cuda.is_available():
        raise NotApplicable('the tool needs a GPU')
    config, checkpoint = files(network, 'mmdet')
    options = [
        '--task',
        'inference',
        '--checkpoint',
        checkpoint,
        '--fuse-conv-bn',
        '--max-iter',
        '4',
        '--num-warmup',
        '1',
    ]
    run(network, 'run', 'mmdet', 'benchmark', config, *options, '--cfg-options', 'log_level=INFO')


@row
def mmdet_results(network: Network):
    """`mim test mmdet --out`, then `mim run mmdet analyze_results`"""
    config, _, out = predictions(network, 'mmdet')
    run(network, 'run', 'mmdet', 'analyze_results', config, out, 'analyzed', '--topk', '1')
    assert list((network.folder / 'analyzed').rglob('*.*'))


@row
def mmdet_matrix(network: Network):
    """`mim test mmdet --out`, then `mim run mmdet confusion_matrix`"""
    config, _, out = predictions(network, 'mmdet')
    run(network, 'run', 'mmdet', 'confusion_matrix', config, out, 'matrix')
    assert list((network.folder / 'matrix').rglob('*.png'))


@row
def mmdet_evaluates(network: Network):
    """`mim test mmdet --out`, then `mim run mmdet eval_metric`"""
    config, _, out = predictions(network, 'mmdet')
    run(network, 'run', 'mmdet', 'eval_metric', config, out)


@row
def mmseg_browse(network: Network):
    """`mim run mmseg browse_dataset`"""
    config = files(network, 'mmseg')[0]
    run(network, 'run', 'mmseg', 'browse_dataset', config, '--output-dir', 'browsed', '--not-show')
    assert list((network.folder / 'browsed').rglob('*.*'))


@row
def mmseg_print(network: Network):
    """`mim run mmseg print_config`"""
    print_config(network, 'mmseg')


@row
def mmseg_flops(network: Network):
    """`mim run mmseg get_flops`"""
    flops(network, 'mmseg')


@row
def mmseg_publish(network: Network):
    """`mim run mmseg publish_model`"""
    publish(network, 'mmseg')


@row
def mmseg_benchmark(network: Network):
    """`mim run mmseg benchmark`"""
    if not torch.cuda.is_available():
        raise NotApplicable('the tool needs a GPU')
    config, checkpoint = files(network, 'mmseg')
    run(network, 'run', 'mmseg', 'benchmark', config, checkpoint, '--repeat-times', '1')


@row
def mmseg_matrix(network: Network):
    """`mim test mmseg --out`, then `mim run mmseg confusion_matrix`"""
    config, checkpoint = files(network, 'mmseg')
    run(network, 'test', 'mmseg', config, '--checkpoint', checkpoint, '--out', 'predicted')
    run(network, 'run', 'mmseg', 'confusion_matrix', config, 'predicted', 'matrix')
    assert list((network.folder / 'matrix').rglob('*.png'))


@row
def mmseg_cam(network: Network):
    """`mim run mmseg visualization_cam`"""
    needs('grad-cam', '1.5')
    config, checkpoint = files(network, 'mmseg')
    options = ['--target-layers', 'backbone.layer4[2]', '--category-index', '1', '--device', 'cpu']
    run(network, 'run', 'mmseg', 'visualization_cam', image(network), config, checkpoint, *options)


@row
def mmseg_torchscript(network: Network):
    """`mim run mmseg pytorch2torchscript`"""
    config, checkpoint = files(network, 'mmseg')
    options = ['--checkpoint', checkpoint, '--shape', '64', '64', '--output-file', 'model.pt', '--verify']
    run(network, 'run', 'mmseg', 'pytorch2torchscript', config, *options)
