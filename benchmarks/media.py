"""Speed and memory of decoding: `python benchmarks/media.py [--minutes 60] [--fps 2] [--height 90] [--out F.json]`.

Writes a synthetic video of an hour and one of a quarter of it, of moving stripes and a tone, and decodes each in a
process of its own: pictures at 2 a second and sound at 16 kHz, in one pass and apart. Speed is in seconds of CPU.
Memory is the most that the process held above what it held before. The long one may need at most 32 MB more.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np

from hiccap.synthetic_videos import write_video

ALLOWED = dict(more_mb=32)
DECODING = '''import json, sys, time
from hiccap.media import FrameSampling, SoundSampling, decode, load_extra
load_extra('av', 'video', 'this')
def mb(name): return sum(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))/1024
wanted = dict(pictures=[FrameSampling(2)], sound=[SoundSampling()], both=[FrameSampling(2), SoundSampling()])
before, t, n, samples = mb('VmRSS'), time.process_time(), 0, 0
for b in decode(sys.argv[1], *wanted[sys.argv[2]]):
    if b.request.kind == 'video': n += len(b.frames)
    else: samples += len(b.samples)
print(json.dumps(dict(seconds=time.process_time() - t, mb=mb('VmHWM') - before, pictures=n, samples=samples)))'''


class Tone:
    "Samples of a tone that are computed when they are asked for"
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, piece): return .3*np.sin(.2*np.arange(*piece.indices(self.n)))


def stripes(n, height):
    "Pictures of moving stripes"
    width = height*16//9//2*2
    for k in range(n):
        row = (np.arange(width) + 7*k)//16 % 2*120 + 60
        yield np.broadcast_to(row[None, :, None].astype(np.uint8), (height, width, 3))


def decoded(path, kind):
    "What one process measures"
    run = subprocess.run([sys.executable, '-c', DECODING, str(path), kind], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=60, help='of the long video')
    p.add_argument('--fps', type=int, default=2, help='pictures a second in the files')
    p.add_argument('--height', type=int, default=90)
    p.add_argument('--ending', default='.mp4')
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix='media-') as folder:
        for name, seconds in dict(short=round(15*a.minutes), long=round(60*a.minutes)).items():
            path, n, t = Path(folder)/f'{name}{a.ending}', seconds*a.fps, time.perf_counter()
            write_video(path, stripes(n, a.height), np.arange(n)/a.fps, Tone(seconds*16000), fps=a.fps,
                        codecs=('libx264', 'libmp3lame', None))  # FFmpeg's AAC takes longer to write
            print(f'{name}: {seconds/60:g} minutes, {path.stat().st_size/1e6:.1f} MB,'
                  f' written at {seconds/(time.perf_counter() - t):.0f} times real time')
            for kind in ('pictures', 'sound', 'both'):
                r = found[f'{name} {kind}'] = decoded(path, kind)
                print(f"  {kind}: {seconds/r['seconds']:.0f} times real time, {r['mb']:.0f} MB")
                if kind != 'sound': assert r['pictures'] == 2*seconds, r
                if kind != 'pictures': assert abs(r['samples'] - 16000*seconds) < 3*1152, r  # blocks of MP3
    more = {k: found[f'long {k}']['mb'] - found[f'short {k}']['mb'] for k in ('pictures', 'sound', 'both')}
    print('the long one needs', ', '.join(f'{v:.1f} MB more for {k}' for k, v in more.items()),
          f"({max(more.values())/ALLOWED['more_mb']:.2f} of what is allowed)")
    asked = {k: v for k, v in vars(a).items() if k != 'out'}
    r = dict(machine=f'{platform.machine()}, {os.cpu_count()} cores', **asked, found=found, more=more,
             allowed=ALLOWED)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n')
    return int(max(more.values()) > ALLOWED['more_mb'])


if __name__ == '__main__': sys.exit(main())
