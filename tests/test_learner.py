"""The learner in a Jupyter kernel: nothing warns, tables are shown, no file is left."""
import re

import pytest

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

CELLS = dict(
    imports='''
import hiccap.runs, hiccap.model
from hiccap.learner import clip_dls, hiccap_learner
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.splits import split_by_video
from hiccap.synthetic import synthetic_clips
''',
    make='''
bert = dict(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
features = dict(kind='features', hidden=8, layers=1)
config = HICCAPConfig.tiny(text=dict(kind='tokens', config=bert), video=dict(features, width=32),
                           audio=dict(features, width=16), width=16)
clips = synthetic_clips(n=60, scale=.1)
dls = clip_dls(*split_by_video(clips, .2), bs=16, device='cpu')
learn = hiccap_learner(dls, HICCAP(config, clips.tasks, seed=0))
learn''',
    dls='dls',
    batch='dls.show_batch(3)',
    fit='learn.fit_one_cycle(2, 1e-3)',
    results='learn.show_results(max_n=3)',
    scores='learn.plot_scores().get_xticks().tolist()',
    lr_find='learn.lr_find(num_it=20)',
    own="import warnings\nwarnings.warn('IProgress not found')",
    files="import os\nos.listdir('.')",
)


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
    "Cell -> what it shows: (stderr, text, HTML)"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in CELLS.values()])
    folder = dict(metadata=dict(path=str(tmp_path_factory.mktemp('notebook'))))
    nbclient.NotebookClient(nb, timeout=600, kernel_name='python3', resources=folder).execute()
    def shown(cell):
        err = ''.join(o.text for o in cell.outputs if o.output_type == 'stream' and o.name == 'stderr')
        data = [o.data for o in cell.outputs if o.output_type == 'execute_result']
        return (err, *(''.join(o.get(k, '') for o in data) for k in ('text/plain', 'text/html')))
    return {k: shown(c) for k, c in zip(CELLS, nb.cells)}


@pytest.mark.parametrize('cell', [o for o in CELLS if o != 'own'])
def test_nothing_warns(outputs, cell): assert outputs[cell][0] == ''


def test_a_warning_of_the_user_is_shown(outputs): assert 'IProgress not found' in outputs['own'][0]


def test_a_learner_and_its_loaders_show_themselves(outputs):
    for cell in ('make', 'dls'):
        _, text, page = outputs[cell]
        for o in ('said, seen, heard, together, order', '48 clips of 12 videos', '12 clips of 3 videos', '16 on cpu'):
            assert o in text and o in page
    for o in ('parameters', 'MultiTaskLoss', 'recorder'): assert o in outputs['make'][1] and o in outputs['make'][2]


def test_tables_have_a_row_for_each_clip_and_a_column_for_each_task(outputs):
    _, text, page = outputs['batch']
    assert page.count('<tr>') == 6 and all(f'>{o}<' in page for o in ('words', 'text', 'video', 'audio', 'order'))
    _, text, page = outputs['results']
    assert all(f'<th>{o}</th>' in page for o in ('words', 'said', 'seen', 'heard', 'together', 'order'))
    assert re.search(r'<td>(yes|no) 0\.\d\d( ✓| ✗ (yes|no))?</td>', page) and page.count('<tr>') < 6


def test_epochs_are_whole_and_nothing_is_left_on_disk(outputs):
    assert all(float(o) % 1 == 0 for o in outputs['scores'][1].strip('[]').split(','))
    assert 'valley' in outputs['lr_find'][1] and outputs['files'][1] == '[]'
