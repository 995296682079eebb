"""Settings of the property tests: HYPOTHESIS_PROFILE=nightly runs many more examples than the default, ci.

`TINY_NETWORK` is the network of every test that trains a run on synthetic clips: small enough for seconds.
"""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before PyTorch: networks as small as these only lose by more threads

import pytest
from hypothesis import HealthCheck, settings

TINY_NETWORK = dict(
    width=16,
    heads=2,
    head_widths=[16],
    text=dict(
        kind='tokens',
        config=dict(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
    video=dict(kind='features', width=32, hidden=8, layers=1),
    audio=dict(kind='features', width=16, hidden=8, layers=1),
)

quiet = dict(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)
settings.register_profile('ci', max_examples=40, derandomize=True, **quiet)
settings.register_profile('nightly', max_examples=10_000, **quiet)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))


def pytest_configure(config):
    config.addinivalue_line(
        'markers',
        'proof: outputs, losses and gradients are finite and blind to padding, at any input; `-m proof` with the'
        ' nightly profile runs 10,000 examples of each')
    config.addinivalue_line(
        'markers',
        'hard: what is done to whole programs: kills, damaged files, several processes; `-m hard` with the nightly'
        ' profile is the long form')


@pytest.fixture
def typed(capsys):
    "Type a command: its status, output and errors"
    import hiccap.cli
    def command(name, *args):
        try: status = getattr(hiccap.cli, name)([str(o) for o in args])
        except SystemExit as e: status = e.code
        got = capsys.readouterr()
        return status or 0, got.out, got.err
    return command


def heard_in_blocks(encoder, x, size):
    "The `Track` of an encoder of sound that gets samples in blocks of a size"
    from hiccap.media import SoundBlock
    encoder.start()
    for k in range(0, len(x), size):
        encoder.push(SoundBlock(x[k:k + size], k/encoder.request.rate, encoder.request))
    return encoder.finish()


def rotate(path, a, b, c, d):
    "Write the display matrix of an MP4's first track, which is that of the pictures"
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 44
    one, unit = 1 << 16, 1 << 30
    matrix = [a*one, b*one, 0, c*one, d*one, 0, 0, 0, unit]
    data[at:at + 36] = b''.join(v.to_bytes(4, 'big', signed=True) for v in matrix)
    path.write_bytes(data)


# matrix, and where the white quarter of the stored picture's top left is shown: row, column
TURNS = {(1, 0, 0, 1): (0, 0), (0, 1, -1, 0): (0, 1), (-1, 0, 0, -1): (1, 1), (0, -1, 1, 0): (1, 0),
         (-1, 0, 0, 1): (0, 1), (1, 0, 0, -1): (1, 0), (0, 1, 1, 0): (0, 0)}
