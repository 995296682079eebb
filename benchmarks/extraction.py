"""Cost and memory of each encoder: `python benchmarks/extraction.py [--seconds 60] [--height 360] [--out F.json]`.

Writes a synthetic video of moving stripes and a tone. A process for each encoder extracts it, and one decodes it only,
for what the pictures and the sound cost by themselves. Costs are seconds of CPU for each second of video, of one core.
Memory is the most that a process held above what it held before. The encoders that need no download may cost at most a
tenth of real time without decoding. `--encoders hf:FOLDER …` measures others.
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
MEASURED = '''import json, sys, time
from hiccap.media import decode, load_extra
from hiccap.named_encoders import make_video_encoder
load_extra('av', 'video', 'this')
def mb(name): return sum(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))/1024
encoder = make_video_encoder(sys.argv[2])
encoder.start()
before, spent, t = mb('VmRSS'), 0, time.process_time()
for b in decode(sys.argv[1], encoder.request):
    at = time.process_time()
    encoder.push(b)
    spent += time.process_time() - at
at = time.process_time()
track = encoder.finish()
now = time.process_time()
print(json.dumps(dict(encoding=spent + now - at, decoding=at - t - spent, rows=len(track), width=encoder.width,
                      mb=mb('VmHWM') - before)))'''


def measured(path, encoder):
    "What one process measures"
    run = subprocess.run([sys.executable, '-c', MEASURED, str(path), encoder], capture_output=True, text=True)
    if run.returncode: sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=int, default=60, help='of the video')
    p.add_argument('--height', type=int, default=360)
    p.add_argument('--fps', type=int, default=25)
    p.add_argument('--encoders', nargs='+', default=list(ALLOWED))
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    width, found = a.height*16//9//2*2, {}
    rows = [((np.arange(width) + 7*k)//16 % 2*120 + 60).astype(np.uint8) for k in range(32)]
    pictures = (np.broadcast_to(rows[k % 32][None, :, None], (a.height, width, 3)) for k in range(a.seconds*a.fps))
    tone = .3*np.sin(.2*np.arange(a.seconds*16000))
    with tempfile.TemporaryDirectory(prefix='extraction-') as folder:
        path = write_video(Path(folder)/'a.mp4', pictures, np.arange(a.seconds*a.fps)/a.fps, tone, fps=a.fps)
        for name in a.encoders:
            r = found[name] = measured(path, name)
            assert r['rows'] > 0, r
            cost = r['encoding']/a.seconds
            r['allowed'] = cost/ALLOWED[name] if name in ALLOWED else None
            more = f" ({r['allowed']:.2f} of what is allowed)" if name in ALLOWED else ''
            print(f"{name}: {3600*cost:.0f} s an hour of video{more}, and {3600*r['decoding']/a.seconds:.0f} s of "
                  f"decoding; {r['rows']} rows of {r['width']}; {r['mb']:.0f} MB")
    r = dict(machine=f'{platform.machine()}, {os.cpu_count()} cores', **vars(a), found=found)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n')
    return int(any((o['allowed'] or 0) > 1 for o in found.values()))


if __name__ == '__main__': sys.exit(main())
