"""The entries of model-index.yml match the configs, our counts and the paper's tables."""

from pathlib import Path

import mmengine
import pytest
from helpers import ROOT, complexity

from mmrednet.checkpoint import IMAGENET
from mmrednet.complexity.tables import ROWS, Row

METAFILES = [mmengine.load(ROOT / path) for path in mmengine.load(ROOT / 'model-index.yml')['Import']]
MODELS = {model['Config']: model for metafile in METAFILES for model in metafile['Models']}
# The rows of Table 6 change options of a config and have no config of their own.
PAPER = {f'configs/{row.config}': row for row in ROWS if not row.options and '::' not in row.config}
BEYOND = 'mmseg/upernet_rednet50_invfpn.py'


def test_every_config_has_an_entry():
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('mm*/*.py')}
    assert set(MODELS) == {path for path in configs if not path.endswith('_demo.py')}
    # Names of models of mmpretrain end in the name of the data set.
    assert all(model['Name'] == Path(path).stem + '_in1k' * ('mmpretrain' in path) for path, model in MODELS.items())
    assert sum(len(metafile['Models']) for metafile in METAFILES) == len(MODELS)


def test_collections():
    for metafile in METAFILES:
        collections = metafile['Collections']
        assert {model['In Collection'] for model in metafile['Models']} == {item['Name'] for item in collections}
        assert all((ROOT / collection['README']).is_file() for collection in collections)


# test_tables.py counts nearly all of these models, too.
@pytest.mark.full
@pytest.mark.parametrize('path', MODELS)
def test_parameters_and_flops(path):
    counted = complexity(PAPER.get(path) or Row('5', 'UPerNet, RedNet-50, involution FPN', 0, 0, BEYOND))
    assert MODELS[path]['Metadata'] == {'FLOPs': counted.flops, 'Parameters': counted.params}


def test_results_are_marked_as_the_papers():
    assert set(MODELS) - set(PAPER) == {f'configs/{BEYOND}'}
    assert 'Results' not in MODELS[f'configs/{BEYOND}']
    for path, row in PAPER.items():
        results = [result for result in MODELS[path]['Results'] if 'PaddleClas' not in result['Source']]
        source = 'Figure 2' if row.table == 'F2' else f'Table {row.table}'
        assert {result['Source'] for result in results} == {f'{source} of the paper'}
        if row.accuracy is not None:
            assert results[0]['Metrics'] == {'Top 1 Accuracy': row.accuracy}
        assert len(results) == 1 + ('mask_rcnn' in path)


def test_weights_and_their_accuracies_are_marked_as_the_publishers():
    weights = {f'configs/mmpretrain/{name}.py': weights for name, weights in IMAGENET.items()}
    assert {path for path, model in MODELS.items() if 'Weights' in model} == set(weights)
    for path, (address, top1) in weights.items():
        assert MODELS[path]['Weights'] == address
        (result,) = (result for result in MODELS[path]['Results'] if 'PaddleClas' in result['Source'])
        # The name differs from that of the paper's result, so that tools that join results by name show both.
        assert result['Metrics'] == {'PaddleClas Top 1 Accuracy': top1}
