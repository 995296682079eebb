"""Cost and memory of each encoder: `python benchmarks/extraction.py [--seconds 60] [--height 360] [--out F.json]`.

Writes a synthetic video of moving stripes and a tone. A process for each encoder extracts it, and one decodes it only,
for what the pictures and the sound cost by themselves. Costs are seconds of CPU for each second of video, of one core;
their inverse is how many times faster than real time an encoder is. Memory is the most that a process held above what
it held before. The encoders that need no download may cost at most a tenth of real time without decoding. Encoders
whose packages are missing are skipped, and named. I3D and VGGish get random weights, which cost what others do; I3D
with motion is measured on a short video. `voice` is what finds voices for a recogniser, `ocr` reads text in pictures
and decodes by itself; both give words, not features. The recipes that need no weights of the user's are measured too:
their encoders share one pass over the video. `--encoders hf:FOLDER whisper:FOLDER …` measures others, and names joined
by + several in one pass.
`row_seconds` is what a row of features stands for, in seconds; several encoders have a list of them, as of widths.

What a million clips cost (nbs/14g_ray_extraction.ipynb) is computed from the file of
`python benchmarks/extraction.py --out nbs/results/extraction.json`.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np

from hiccap.synthetic_videos import write_video

ALLOWED = dict(picture=.1, spectrum=.1)  # seconds of CPU for each second of video
PACKAGED, OWN, TEXTS = ('efficientnet', 'nsfw', 'speech'), ('vggish', 'i3d_rgb', 'i3d'), ('voice', 'ocr')
RECIPES = dict(offline='picture+spectrum', wheels='efficientnet+nsfw+spectrum')  # name -> its encoders
SHORT = dict(i3d=3, i3d_rgb=12, ocr=12)  # most seconds of video for slow ones
MEASURED = '''import json, sys, time
from hiccap.media import decode, load_extra
load_extra('av', 'video', 'this')
path, name = sys.argv[1:]
def mb(name): return sum(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))/1024
def made():
    if name == 'voice':
        from hiccap.speech_text import VoiceEncoder
        return [VoiceEncoder()]
    if name == 'ocr' or name.startswith('whisper:'):
        from hiccap.video_clips import make_text_source
        return make_text_source(name)
    from hiccap.named_encoders import make_video_encoder
    return [make_video_encoder(o) for o in name.split('+')]
def blocks_measured(encoders):
    for e in encoders: e.start()
    spent, t = 0, time.process_time()
    for b in decode(path, *dict.fromkeys(e.request for e in encoders)):
        at = time.process_time()
        for e in encoders:
            if e.request == b.request: e.push(b)
        spent += time.process_time() - at
    at = time.process_time()
    tracks = [e.finish() for e in encoders]
    now = time.process_time()
    found = dict(encoding=spent + now - at, decoding=at - t - spent, rows=[len(o) for o in tracks])
    if name == 'voice': return dict(found, row_seconds=None, widths=None)
    return dict(found,
                row_seconds=[float(o.seconds[-1, 1] - o.seconds[0, 0])/len(o) for o in tracks],
                widths=[e.width for e in encoders])
def text_measured(source):
    t = time.process_time()
    found = source.read(path)
    return dict(encoding=time.process_time() - t, decoding=None, rows=[len(found)], row_seconds=None, widths=None)
try: o = made()
except ImportError as e: print(json.dumps(dict(skipped=str(e))))
else:
    before = mb('VmRSS')
    found = text_measured(o) if hasattr(o, 'read') else blocks_measured(o)
    print(json.dumps(dict(found, mb=mb('VmHWM') - before)))'''


def random_weights(folder):
    "Files of weights of I3D, PWC-Net and VGGish; each array repeats one number, which costs what others do"
    import torch
    from hiccap.i3d import I3D
    from hiccap.optical_flow import PWCNet
    from hiccap.vggish import VGGish
    networks = dict(i3d_rgb=lambda: I3D(3), i3d_flow=lambda: I3D(2), pwc_net=PWCNet, vggish=VGGish)
    for name, network in networks.items():
        with torch.device('meta'): wanted = network().state_dict()
        torch.save({k: torch.tensor(.01).expand(o.shape) for k, o in wanted.items()}, Path(folder)/f'{name}.pt')


def stripes(path, seconds, height, fps):
    "A video of moving stripes and a tone"
    width = height*16//9//2*2
    rows = [((np.arange(width) + 7*k)//16 % 2*120 + 60).astype(np.uint8) for k in range(32)]
    pictures = (np.broadcast_to(rows[k % 32][None, :, None], (height, width, 3)) for k in range(seconds*fps))
    return write_video(path, pictures, np.arange(seconds*fps)/fps, .3*np.sin(.2*np.arange(seconds*16000)), fps=fps)


def measured(path, encoder):
    "What one process measures"
    run = subprocess.run([sys.executable, '-c', MEASURED, str(path), encoder], capture_output=True, text=True)
    if run.returncode: sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def described(name, r):
    "A line of the report"
    if 'skipped' in r: return f"{name}: skipped, {r['skipped']}"
    more = f" ({r['allowed']:.2f} of what is allowed)" if r['allowed'] else ''
    decoding = '' if r['decoding'] is None else f", and {3600*r['decoding']/r['seconds']:.0f} s of decoding"
    size = '' if r['widths'] is None else f" of {', '.join(map(str, r['widths']))}"
    return (f"{name}: {1/max(r['cost'], 1e-9):.3g} times as fast as real time, {3600*r['cost']:.0f} s an hour of video"
            f"{more}{decoding}; {', '.join(map(str, r['rows']))} rows{size}; {r['mb']:.0f} MB")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=int, default=60, help='of the video')
    p.add_argument('--height', type=int, default=360)
    p.add_argument('--fps', type=int, default=25)
    p.add_argument('--encoders', nargs='+', default=[*ALLOWED, *PACKAGED, *OWN, *TEXTS, *RECIPES])
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    found, videos = {}, {}
    with tempfile.TemporaryDirectory(prefix='extraction-') as folder:
        if set(OWN) & set(a.encoders): random_weights(folder)
        for name in a.encoders:
            seconds = min(a.seconds, SHORT.get(name, a.seconds))
            if seconds not in videos: videos[seconds] = stripes(Path(folder)/f'{seconds}.mp4', seconds, a.height, a.fps)
            r = found[name] = measured(videos[seconds], f'{name}:{folder}' if name in OWN else RECIPES.get(name, name))
            if 'skipped' not in r:
                assert all(r['rows']) or r['widths'] is None, r
                r['seconds'], r['cost'] = seconds, r['encoding']/seconds
                r['allowed'] = r['cost']/ALLOWED[name] if name in ALLOWED else None
            print(described(name, r), flush=True)
    asked = {k: v for k, v in vars(a).items() if k != 'out'}
    r = dict(machine=f'{platform.machine()}, {os.cpu_count()} cores', **asked, found=found)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n')
    return int(any((o.get('allowed') or 0) > 1 for o in found.values()))


if __name__ == '__main__': sys.exit(main())
