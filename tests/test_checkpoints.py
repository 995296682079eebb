"""Checkpoints: a saved model comes back bit for bit, released weights come from any kind of file, and nothing damaged
or dangerous is read."""
import copy
import json
import pickle
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from upstream_reference import parity_folder, parity_recipe

from hiccap import checkpoints
from hiccap.checkpoints import (CheckpointError, CONFIG, FORMAT, WEIGHTS, init_from, load_model, load_upstream,
                                read_weights, save_model, upstream_name)
from hiccap.clips import MODALITIES
from hiccap.encoders import FeaturesConfig, TokensConfig, text_backbone
from hiccap.model import HICCAP, HICCAPConfig, VARIANTS
from hiccap.tasks import COMIC_MISCHIEF, Task

needs_parity = pytest.mark.skipif(
    parity_folder() is None, reason='no ../shared/parity beside the checkout, and HICCAP_PARITY names none')
BERT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=16)
TASKS = Task('binary'), Task('mood', 3, class_weights=(1, 2, 3), classes=('sad', 'so', 'glad'))


def tiny(seed=0, tasks=TASKS, **kw):
    small = dict(text=TokensConfig(BERT), video=FeaturesConfig(6, 8, 1), audio=FeaturesConfig(4, 8, 1))
    return HICCAP(HICCAPConfig.tiny(**{**small, **kw}), tasks, seed=seed).eval()


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = dict(text=torch.randint(1, 40, (3, 5), generator=g), video=torch.randn(3, 4, 6, generator=g),
             audio=torch.randn(3, 2, 4, generator=g))
    return {**x, **{f'{m}_mask': torch.rand(v.shape[:2], generator=g) < .8 for m, v in x.items()}}


def equal_bit_for_bit(a, b):
    x = batch()
    with torch.no_grad(): one, other = a(x), b(x)
    assert list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)
    assert all(
        torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.fixture(scope='module')
def model(): return tiny()

@pytest.fixture
def saved(model, tmp_path): return save_model(model, tmp_path/'best', tokenizer='some-tokenizer')


# Our own

@pytest.mark.parametrize('kw', [
    {}, dict(matching=True, projection=5), dict(head='upstream', matching=True, projection=5),
    dict(text=FeaturesConfig(6, 4, 1), absent='as_given'),
    dict(pooling='exp', soft_mask=True, read_padding=True, recur_padding=True, pool_padding=True),
    dict(text=TokensConfig({**BERT, 'model_type': 'roberta', 'pad_token_id': 1}))])
def test_a_round_trip_is_bit_for_bit(tmp_path, kw):
    net = tiny(seed=3, **kw)
    back = load_model(save_model(net, tmp_path/'deep'/'er'))
    assert back.config == net.config and back.tasks == net.tasks and not back.training and back.tokenizer_name is None
    if kw.get('text') != FeaturesConfig(6, 4, 1): equal_bit_for_bit(net, back)
    else: assert all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), back.state_dict().values()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_a_round_trip_keeps_the_precision(tmp_path, dtype):
    net = tiny().to(dtype)
    equal_bit_for_bit(net, load_model(save_model(net, tmp_path/'m')))


def test_a_second_round_trip_writes_the_same_file(model, saved, tmp_path):
    again = save_model(load_model(saved), tmp_path/'again')
    for name in (WEIGHTS, CONFIG): assert (again/name).read_bytes() == (saved/name).read_bytes()
    assert load_model(again).tokenizer_name == 'some-tokenizer'


def test_loading_needs_no_folder_of_the_text_encoder_and_no_default(tmp_path, monkeypatch):
    source = tmp_path/'encoder'
    text_backbone(TokensConfig(BERT)).save_pretrained(source)
    net = tiny(text=str(source))
    folder = save_model(net, tmp_path/'m')
    shutil.rmtree(source)
    equal_bit_for_bit(net, load_model(folder))
    import transformers
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', lambda *a, **k: pytest.fail('looked for a file'))
    equal_bit_for_bit(net, load_model(save_model(load_model(folder), tmp_path/'n')))
    assert '_name_or_path' not in (folder/CONFIG).read_text()


def test_saving_and_loading_leave_the_generator_and_the_model_alone(model, tmp_path):
    torch.manual_seed(3)
    before, mode = torch.get_rng_state(), model.training
    load_model(save_model(model.train(), tmp_path/'m'))
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.train(mode)


def test_nothing_is_overwritten_unless_asked(model, saved, tmp_path):
    other, before = tiny(seed=9), (saved/WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match='overwrite=True'): save_model(other, saved)
    assert (saved/WEIGHTS).read_bytes() == before
    equal_bit_for_bit(load_model(save_model(other, saved, overwrite=True)), other)
    (tmp_path/'notes').mkdir()
    (tmp_path/'notes'/'thesis.tex').write_text('years')
    (tmp_path/'file').write_text('x')
    for place in ('notes', 'file'):
        with pytest.raises(CheckpointError, match='which is not part of a model'):
            save_model(model, tmp_path/place, overwrite=True)
    (tmp_path/'best.replaced').mkdir()
    (tmp_path/'best.replaced'/'thesis.tex').write_text('years')
    with pytest.raises(CheckpointError, match='rename it'): save_model(model, saved, overwrite=True)
    assert (tmp_path / 'best.replaced' / 'thesis.tex').read_text() == (
        tmp_path / 'notes' / 'thesis.tex').read_text() == 'years' and (tmp_path / 'file').read_text() == 'x'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['best', 'best.replaced', 'file', 'notes']
    (tmp_path/'empty').mkdir()
    load_model(save_model(model, tmp_path/'empty'))


@pytest.mark.parametrize('at', [0, 1])
def test_an_error_at_either_rename_leaves_a_whole_model(model, saved, tmp_path, monkeypatch, at):
    rename, calls = Path.rename, []
    def failing(self, to):
        calls.append(self)
        if len(calls) == at + 1: raise OSError('no space')
        return rename(self, to)
    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(OSError, match='no space'): save_model(tiny(seed=9), saved, overwrite=True)
    equal_bit_for_bit(load_model(saved), model)
    assert [p.name for p in tmp_path.iterdir()] == ['best']


def test_a_kill_between_the_renames_loses_nothing(model, saved, tmp_path):
    new = tiny(seed=9)
    saved.rename(tmp_path/'best.replaced')  # as the disk is after the kill
    equal_bit_for_bit(load_model(saved), model)
    equal_bit_for_bit(load_model(saved), model)  # reading changed nothing
    assert [p.name for p in tmp_path.iterdir()] == ['best.replaced']
    with pytest.raises(CheckpointError, match='overwrite=True'): save_model(new, saved)
    equal_bit_for_bit(load_model(saved), model)
    equal_bit_for_bit(load_model(save_model(new, saved, overwrite=True)), new)
    assert [p.name for p in tmp_path.iterdir()] == ['best']


def test_a_kill_after_the_renames_keeps_the_new(model, saved, tmp_path):
    save_model(tiny(seed=9), tmp_path/'best.replaced')
    equal_bit_for_bit(load_model(saved), model)
    assert (tmp_path/'best.replaced').exists()  # a reader takes nothing away from a writer
    new = tiny(seed=10)
    equal_bit_for_bit(load_model(save_model(new, saved, overwrite=True)), new)
    assert [p.name for p in tmp_path.iterdir()] == ['best']


def test_a_failure_while_writing_leaves_no_half(model, saved, tmp_path, monkeypatch):
    def broken(*a): raise OSError('disk full')
    monkeypatch.setattr(checkpoints, '_describe', broken)
    for folder, overwrite in ((saved, True), (tmp_path/'new', False)):
        with pytest.raises(OSError, match='disk full'): save_model(tiny(seed=9), folder, overwrite)
    equal_bit_for_bit(load_model(saved), model)
    assert [p.name for p in tmp_path.iterdir()] == ['best']


def test_others_may_read_a_saved_model(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755


# Damaged, tampered with, from elsewhere

@given(name=st.sampled_from([WEIGHTS, CONFIG]), where=st.floats(0, 1, exclude_max=True),
    how=st.sampled_from(['flip', 'cut', 'more', 'gone', 'empty']))
def test_whatever_was_changed_is_named(tmp_path_factory, name, where, how):
    folder = tmp_path_factory.getbasetemp()/'sealed'
    if not folder.exists(): save_model(tiny(), folder)
    path, at = folder/name, None
    good = path.read_bytes()
    at = int(where*len(good))
    bad = bytearray(good)
    if how == 'flip': bad[at] ^= 0x04
    try:
        if how == 'gone': path.unlink()
        else: path.write_bytes({'flip': bytes(bad), 'cut': good[:at], 'more': good + b' x', 'empty': b''}[how])
        for read in (load_model, read_weights, lambda f: init_from(tiny(), f, verbose=False)):
            with pytest.raises(CheckpointError) as e: read(folder)
            assert str(folder) in str(e.value) and name in str(e.value) and (';' in str(e.value))
    finally: path.write_bytes(good)


def test_a_changed_setting_is_told(saved):
    "Also one that the weights would fit"
    text = (saved/CONFIG).read_text()
    assert '"dropout": 0.2' in text
    (saved/CONFIG).write_text(text.replace('"dropout": 0.2', '"dropout": 0.3', 1))
    for read in (load_model, read_weights):
        with pytest.raises(CheckpointError, match=f'{CONFIG} does not agree with its own checksum'): read(saved)


def resealed(folder, **kw):
    d = json.loads((folder/CONFIG).read_text())
    (folder / CONFIG).write_text(
        json.dumps(checkpoints.seal({k: v for k, v in {**d, **kw}.items() if k != 'checksum' and v is not ...})))


@pytest.mark.parametrize('change, message', [
    (dict(format=FORMAT + 1), f'format {FORMAT + 1}, this version of hiccap reads {FORMAT}; install'),
    (dict(format=...), 'describes no model'),
    (dict(config=dict(poling='softmax')), "did you mean 'pooling'"), (dict(config=dict(width='x')), 'cannot be built'),
    (dict(tasks=[dict(name='t', n_classes=1)]), 'cannot be built'),
    (dict(tasks=...), 'cannot be built'), (dict(tasks=[dict(name='other')]), 'lacks heads.task_other'),
    (dict(encoders=3), 'cannot be built'),
    (dict(encoders=dict(text=dict(BERT, model_type='nonesuch'))), 'cannot be built'),
    (dict(encoders=dict(text=dict(BERT, hidden_size=8))), 'lacks encoders.text.project'),
    (dict(encoders=dict(text=dict(BERT, vocab_size=9))), 'of shape')])
def test_a_description_that_does_not_fit_is_told(saved, change, message):
    "Also where whoever changed it made the checksum anew"
    resealed(saved, **change)
    with pytest.raises(CheckpointError, match=message) as e: load_model(saved)
    assert str(saved) in str(e.value)


def test_what_is_no_folder_of_ours_is_told(tmp_path):
    for make in (lambda p: None, lambda p: p.mkdir(), lambda p: (p.mkdir(), (p/CONFIG).write_text('[1]')),
            lambda p: (p.mkdir(), (p/CONFIG).write_text('{"hidden_size": 3}'))):
        shutil.rmtree(tmp_path/'x', ignore_errors=True)
        make(tmp_path/'x')
        with pytest.raises(CheckpointError, match='give a folder that save_model wrote'): load_model(tmp_path/'x')


class Bomb:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')


@pytest.mark.parametrize('wrap',
    [lambda b: b, lambda b: dict(model_state=b), lambda b: dict(model_state=dict(w=torch.ones(1), x=b))])
@pytest.mark.parametrize('how', ['torch', 'old torch', 'pickle'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', ''])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_code_in_a_file_never_runs(tmp_path, wrap, how, suffix):
    path, ran = tmp_path/f'weights{suffix}', tmp_path/'ran'
    if how == 'pickle': path.write_bytes(pickle.dumps(wrap(Bomb(ran))))
    else: torch.save(wrap(Bomb(ran)), path, _use_new_zipfile_serialization=how == 'torch')
    for read in (read_weights, lambda p: load_upstream(p, verbose=False),
            lambda p: init_from(tiny(), p, verbose=False)):
        with pytest.raises(CheckpointError) as e: read(path)
        assert str(path) in str(e.value)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Bomb(ran)))
    assert ran.exists()  # it is a bomb


def test_code_in_a_saved_folder_never_runs(saved, tmp_path):
    torch.save(Bomb(tmp_path/'ran'), saved/WEIGHTS)
    resealed(saved, weights_checksum=checkpoints.file_sha(saved/WEIGHTS))
    with pytest.raises(CheckpointError, match=WEIGHTS): load_model(saved)
    assert not (tmp_path/'ran').exists()


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_a_cut_file_is_named(tmp_path_factory, where, tensors):
    base = tmp_path_factory.getbasetemp()/('cut.safetensors' if tensors else 'cut.pth')
    weights = {f'w{i}': torch.randn(9) for i in range(5)}
    save_file(weights, base) if tensors else torch.save(weights, base)
    data = base.read_bytes()
    base.write_bytes(data[:int(where*len(data))])
    with pytest.raises(CheckpointError) as e: read_weights(base)
    assert str(base) in str(e.value)


# Tensors from anywhere

ARRAYS = dict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(3))

@pytest.mark.parametrize('wrap',
    [lambda d: d, lambda d: dict(model_state=d, epoch=3), lambda d: dict(state_dict=d),
    lambda d: dict(model_state_dict={f'module.{k}': v for k, v in d.items()})])
def test_the_same_tensors_from_mapping_and_files(tmp_path, wrap):
    tensors = {k: torch.as_tensor(v) for k, v in ARRAYS.items()}
    torch.save(wrap(tensors), tmp_path/'w.pth')
    save_file(tensors, tmp_path/'w.safetensors')
    for source in (wrap(ARRAYS), wrap(tensors), wrap({k: v.tolist() for k, v in ARRAYS.items()}), tmp_path/'w.pth',
            str(tmp_path/'w.pth'), tmp_path/'w.safetensors'):
        got = read_weights(source)
        assert set(got) == {'a', 'b'} and np.array_equal(got['a'], ARRAYS['a']) and got['b'] == 3


@pytest.mark.parametrize('bad',
    [None, 'text', object(), np.array([None, 1]), np.array(['x']), [[1, 2], [3]], np.zeros(2, dtype=[('a', 'f4')]),
    {1: 2}])
def test_a_mapping_that_holds_no_arrays_is_refused(bad):
    for read in (read_weights, lambda s: init_from(tiny(), s, verbose=False),
            lambda s: load_upstream(s, verbose=False)):
        with pytest.raises(CheckpointError, match='mapping'): read(dict(w=torch.ones(1), x=bad))


@pytest.mark.parametrize('bad', [{}, dict(model_state={}), {1: torch.ones(1)}])
def test_a_mapping_without_names_is_refused(bad):
    with pytest.raises(CheckpointError, match='mapping'): read_weights(bad)


def test_a_file_that_is_not_there_or_holds_no_mapping(tmp_path):
    with pytest.raises(CheckpointError, match='nowhere.pth does not exist'):
        load_upstream(tmp_path/'nowhere.pth')
    torch.save(torch.ones(3), tmp_path/'tensor.pth')
    with pytest.raises(CheckpointError, match='tensor.pth holds no mapping'): load_upstream(tmp_path/'tensor.pth')


# Released weights

@needs_parity
def test_two_loads_of_one_draw_agree_wherever_they_come_from(tmp_path):
    recipe = parity_recipe()
    arrays = recipe.weights('matching', 'some other draw')
    tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
    torch.save(dict(model_state=tensors, epoch=7), tmp_path/'best.pth')
    save_file(tensors, tmp_path/'best.safetensors')
    x = {
        k: torch.as_tensor(v)
        for k, v in recipe.inputs(
            seed=11, text_len=9, text=(9, 3), video=(5, 2), audio=(1, 6), video_len=5, audio_len=6).items()
    }
    outs = []
    for source in (arrays, tmp_path/'best.pth', str(tmp_path/'best.safetensors')):
        net = load_upstream(source, variant='matching', text_config=recipe.TEXT_CONFIG, verbose=False)
        assert (not net.training and not net.load_report.missing and not net.load_report.unexpected
                and not net.load_report.mismatched)
        with torch.no_grad(): outs.append({**net(x), **net.encode(x)})
        assert set(outs[0]) == {'text_audio', 'video_audio', 'video_text', *MODALITIES}
    for other in outs[1:]: assert all(torch.equal(outs[0][k], other[k]) for k in other)


@needs_parity
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_released_name_has_its_place(variant):
    names = json.loads((parity_folder()/f'state_dict_{variant}.json').read_text())
    with torch.device('meta'):
        net = HICCAP(HICCAPConfig.upstream(variant, text=TokensConfig(parity_recipe().TEXT_CONFIG)),
                     dict(binary=COMIC_MISCHIEF[:1], multi_task=COMIC_MISCHIEF[1:]).get(variant, ()))
    ours = {k: list(v.shape) for k, v in net.state_dict().items()}
    mapped = {upstream_name(k): s for k, s in names.items() if upstream_name(k)}
    assert mapped == ours and len(mapped) == sum(upstream_name(k) is not None for k in names)
    assert all('pooler' in k or k.startswith('sequential') for k in names if upstream_name(k) is None)


def state(variant='binary'):
    "A small released state dict: our upstream network's, under the released names"
    net = HICCAP(HICCAPConfig.upstream(variant, text=TokensConfig(SMALL)),
                 COMIC_MISCHIEF[:1] if variant == 'binary' else COMIC_MISCHIEF[1:], seed=0)
    back = ({f'features.{i}': m for i, m in checkpoints._FEATURES.items()}
            | dict(img_audio_text_linear='heads.task_binary')
            | {f'img_audio_text_linear_{t.name}': f'heads.task_{t.name}' for t in COMIC_MISCHIEF[1:]})
    rev = sorted(((v, k) for k, v in back.items()), key=lambda o: -len(o[0]))
    def old(name): return next(k + name[len(v):] for v, k in rev if name.startswith(v + '.'))
    return {old(k): v for k, v in net.state_dict().items()}

SMALL = dict(vocab_size=20, hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=8,
             max_position_embeddings=8)

@pytest.fixture(scope='module')
def binary(): return state()


def test_what_is_missing_strange_or_misshapen_is_reported(binary, capsys):
    net = load_upstream(
        {**binary, 'features.0.pooler.dense.bias': torch.ones(1), 'sequential.0.bias': torch.ones(1),
         'features.99.x': torch.ones(1)},
        text_config=SMALL,
    )
    r = net.load_report
    assert (len(r.matched) == len(binary) and r.unexpected == ['features.99.x']
            and r.unused == ['features.0.pooler.dense.bias', 'sequential.0.bias']
            and 'features.99.x' in capsys.readouterr().out)
    less = {k: v for k, v in binary.items() if k != 'features.20.v'}
    with pytest.raises(CheckpointError, match=r"lacks pools.video.v; give the variant"):
        load_upstream(less, text_config=SMALL, verbose=False)
    r = load_upstream(less, text_config=SMALL, strict=False, verbose=False).load_report
    assert r.missing == ['pools.video.v'] and not r.mismatched
    wrong = {**binary, 'features.20.v': torch.ones(5)}
    with pytest.raises(CheckpointError, match=r'pools.video.v of shape \(5,\) where the model has \(768,\)'):
        load_upstream(wrong, text_config=SMALL, verbose=False)
    r = load_upstream(wrong, text_config=SMALL, strict=False, verbose=False).load_report
    assert (r.mismatched == ['pools.video.v'] and r.shapes == {'pools.video.v': ((5,), (768,))}
            and 'pools.video.v' not in r.matched)


def test_weights_of_another_variant_or_encoder_are_refused(binary):
    for variant in ('multi_task', 'matching', 'contrastive'):
        with pytest.raises(CheckpointError, match=f"read as variant '{variant}'"):
            load_upstream(binary, variant, SMALL, verbose=False)
    # without heads of its own nothing is missing, and the order of contexts would be wrong in silence
    with pytest.raises(CheckpointError, match="released binary network.*give variant='binary'"):
        load_upstream(binary, 'multi_task', SMALL, tasks=[], verbose=False)
    report = load_upstream(binary, 'multi_task', SMALL, tasks=[], strict=False, verbose=False).load_report
    assert not report.missing and 'warning: the heads are those of the released binary network' in str(report)
    assert not load_upstream(binary, 'binary', SMALL, tasks=[], verbose=False).load_report.differs
    with pytest.raises(CheckpointError, match='text_config'):
        load_upstream(binary, 'binary', {**SMALL, 'num_hidden_layers': 2}, verbose=False)
    with pytest.raises(ValueError, match='variant must be one of'): load_upstream(binary, 'unary')


def test_weights_with_nan_are_refused(binary, model):
    bad = {**binary, 'features.20.v': torch.full((768,), torch.nan)}
    with pytest.raises(CheckpointError, match='NaN or infinity in pools.video.v'):
        load_upstream(bad, text_config=SMALL, verbose=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match='NaN or infinity in absent.text'):
        init_from(model, {'absent.text': torch.full((16,), torch.inf)}, verbose=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# Starting from another model

def test_init_from_takes_what_fits_and_reports_the_rest(model, saved):
    other = tiny(seed=5, tasks=(TASKS[0], Task('mood', 4), Task('new')), audio=FeaturesConfig(7, 8, 1))
    before = copy.deepcopy(other.state_dict())
    r = init_from(other, saved, verbose=False)
    source, now = model.state_dict(), other.state_dict()
    assert r is other.load_report and set(r.matched) | set(r.missing) | set(r.mismatched) == set(now) and not r.unused
    assert {k.split('.')[1] for k in r.missing} == {'task_new'} and not r.unexpected
    assert 'heads.task_mood.4.weight' in r.mismatched and r.shapes['encoders.audio.lstm.weight_ih_l0'] == (
        (32, 4), (32, 7))
    for k in now: assert torch.equal(now[k], source[k] if k in r.matched else before[k])
    with pytest.raises(CheckpointError, match='Nothing in .* fits this model'):
        init_from(other, dict(w=torch.ones(1)), verbose=False)


def test_init_from_released_weights(binary):
    net = HICCAP(HICCAPConfig(text=TokensConfig(SMALL), head='upstream'), [COMIC_MISCHIEF[0], Task('new')], seed=3)
    r = init_from(net, {**binary, 'features.0.pooler.dense.bias': torch.ones(1)}, verbose=False)
    assert ({k.split('.')[0] for k in r.missing} == {'absent', 'heads'} and not r.unexpected
            and r.unused == ['features.0.pooler.dense.bias'])
    assert torch.equal(net.pools['video'].v, binary['features.20.v']) and torch.equal(
        net.heads['task_binary'][0].weight, binary['img_audio_text_linear.0.weight'])


def test_init_from_tells_what_no_tensor_shows(model, saved, tmp_path):
    "The order of contexts and the number of attention heads, of released weights and of our own"
    weights, own = state('multi_task'), [Task(o) for o in 'abcde']
    def fresh(**kw): return HICCAP(HICCAPConfig(text=TokensConfig(SMALL), **kw), own, seed=3)
    with pytest.warns(UserWarning, match='video attends to audio then text, in this model to text then audio') as told:
        r = init_from(fresh(), weights, verbose=False)
    assert len(told) == len(r.differs) == 1 and f'warning: {r.differs[0]}' in str(r) and not r.mismatched
    r = init_from(fresh(contexts=HICCAPConfig.upstream('multi_task').contexts), weights, verbose=False)
    assert not r.differs and {k.split('.')[0] for k in r.missing} == {'absent', 'heads'}
    other = tiny(heads=4, contexts=HICCAPConfig.upstream('matching').contexts)
    with pytest.warns(UserWarning): differs = init_from(other, saved, verbose=False).differs
    assert len(differs) == 3 and 'has 2 attention heads, this model 4' in differs[0]
    assert not init_from(tiny(seed=4), saved, verbose=False).differs
    assert not init_from(other, model.state_dict(), verbose=False).differs  # a mapping does not tell
