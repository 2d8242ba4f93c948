import json

import pytest
import torch
from helpers import cells

from mmrednet.benchmark.report import format_results
from mmrednet.benchmark.timing import Result
from mmrednet.environment import describe_machine
from mmrednet.formatting import FORMATS

RESULTS = [
    Result({'shape': shape, 'batch': 8, 'phase': phase}, candidate, 'ms', samples)
    for phase in ('forward', 'backward')
    for shape in ('64x56x56, K = 7', '128x56x56, K = 7, stride 2')
    for candidate, samples in {'floor': (0.5, 0.25, 0.75), 'cpu': (1.0, 0.75, 1.5)}.items()
]


@pytest.mark.parametrize('style', FORMATS)
def test_formats(style):
    about = describe_machine()
    text = format_results(RESULTS, style, about)
    assert torch.__version__ in about['versions'] and all(value in text for value in about.values())
    if style == 'json':
        records = [(r['candidate'], r['median'], r['iqr']) for r in json.loads(text)['results']]
        assert records == [('floor', 0.5, 0.25), ('cpu', 1.0, 0.375)] * 4
    else:
        rows = cells(text)
        assert rows[0] == ['shape', 'batch', 'phase', 'floor', 'cpu', 'cpu / floor']
        assert [row[2:] for row in rows[2:]] == [
            [phase, '0.500 (0.25)', '1.00 (0.38)', '2.00'] for phase in ('forward',) * 2 + ('backward',) * 2
        ]


def test_unknown_format():
    with pytest.raises(ValueError, match="format must be one of .* but is 'yaml'"):
        format_results(RESULTS, 'yaml')
