"""A page in headless Chromium, driven by the devtools protocol: what a person types and clicks, and what is then shown.

`browser()` is a context manager; it skips the test, with the reason, where Chromium or websocket-client is missing.
"""
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
KEYS = {'Tab': 9, 'Enter': 13, ' ': 32, 'End': 35, 'Home': 36, 'ArrowLeft': 37, 'ArrowRight': 39}


class Page:
    "One tab"
    def __init__(self, socket):
        self.socket, self.number, self.errors, self.requests = socket, 0, [], []
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')

    def call(self, method, **params):
        "Send a command and return its result; errors and requests of the page are kept meanwhile"
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while True:
            got = json.loads(self.socket.recv())
            if got.get('id') == self.number:
                assert 'error' not in got, got['error']
                return got['result']
            self._note(got.get('method'), got.get('params', {}))

    def _note(self, method, params):
        if method == 'Runtime.exceptionThrown': self.errors.append(params['exceptionDetails'])
        if method == 'Log.entryAdded' and params['entry']['level'] == 'error': self.errors.append(params['entry'])
        if method == 'Network.requestWillBeSent': self.requests.append(params['request']['url'])

    def run(self, js):
        "The value of an expression in the page"
        got = self.call('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in got, got['exceptionDetails']
        return got['result'].get('value')

    def wait(self, js, seconds=20):
        "Wait until an expression is true"
        end = time.monotonic() + seconds
        while not (found := self.run(js)):
            assert time.monotonic() < end, f'never true: {js}'
            time.sleep(.05)
        return found

    def open(self, path, fragment='', ready="document.getElementById('rows')?.childNodes.length > 0"):
        "Open a file"
        self.call('Page.navigate', url='about:blank')
        self.errors, self.requests = [], []
        self.call('Page.navigate', url=Path(path).resolve().as_uri() + fragment)
        self.wait(f"document.readyState === 'complete' && ({ready})")

    def press(self, key):
        "Press a key"
        code = KEYS.get(key) or ord(key.upper())
        text = {'Enter': '\r'}.get(key, key if len(key) == 1 else None)
        more = dict(text=text) if text else {}
        self.call('Input.dispatchKeyEvent', type='keyDown', key=key, windowsVirtualKeyCode=code, **more)
        self.call('Input.dispatchKeyEvent', type='keyUp', key=key, windowsVirtualKeyCode=code)

    def type(self, text): self.call('Input.insertText', text=text)

    def click(self, selector, across=.5, down=.5):
        "Click on an element, at a share of its width and height"
        box = self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: 'nearest'}}); const b = e.getBoundingClientRect();
            return [b.left + {across}*b.width, b.top + {down}*b.height]; }})()""")
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=box[0], y=box[1], button='left', clickCount=1)

    def text(self, selector):
        "The text of an element as it is shown"
        return self.run(f'document.querySelector({json.dumps(selector)})?.innerText')

    def texts(self, selector):
        "The text of each element"
        return self.run(f'[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)')

    def screenshot(self, path):
        "Write what is shown as PNG"
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))


@contextmanager
def browser(width=1400, height=1000):
    "A new Chromium with a profile of its own"
    websocket = pytest.importorskip('websocket', reason='websocket-client is not installed')
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None: pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [found, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0', '--no-first-run',
             '--remote-allow-origins=*', f'--window-size={width},{height}', f'--user-data-dir={profile}',
             '--autoplay-policy=no-user-gesture-required', '--disable-background-networking', 'about:blank'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _wait_for(lambda: int((Path(profile)/'DevToolsActivePort').read_text().split()[0]), process)
            def tabs():
                with urllib.request.urlopen(f'http://127.0.0.1:{port}/json') as f: found = json.load(f)
                return next(o for o in found if o['type'] == 'page')['webSocketDebuggerUrl']
            page = Page(websocket.create_connection(_wait_for(tabs, process), timeout=60))
            yield page
            page.socket.close()
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(get, process, seconds=30):
    "The first result of `get` that is not an error"
    end = time.monotonic() + seconds
    while True:
        try: return get()
        except (OSError, ValueError, IndexError, StopIteration):
            if process.poll() is not None: pytest.skip(f'Chromium ended with status {process.returncode}')
            assert time.monotonic() < end, 'Chromium did not start'
            time.sleep(.1)
