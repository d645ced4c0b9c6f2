"The site, built if it is missing or stale, on a server of its own, in a browser that reaches nothing else"
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT/'_docs'
sys.path.insert(0, str(ROOT))  # so that a bare `pytest` finds tools
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']


def build_site():
    "Build the site, by the Makefile where its environment is the one in use"
    made = (ROOT/'.venv'/'.installed').exists() and Path(sys.prefix).resolve() == (ROOT/'.venv').resolve() and shutil.which('make')
    env = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}
    command = ['make', 'site'] if made else [sys.executable, '-m', 'tools.site']
    run = subprocess.run(command, check=False, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, f'{" ".join(command)}\n{run.stdout}'


@pytest.fixture(scope='session')
def site():
    "The folder of the built site"
    build_site()
    return SITE


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    "A handler that keeps connections open and does not log"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass


@pytest.fixture(scope='session')
def address(site):
    "Where the site is served"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(QuietHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='session')
def browser():
    "A headless browser, or a skip with the reason"
    sync_api = pytest.importorskip('playwright.sync_api', reason='the tests of the site need playwright')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path: pytest.skip('the tests of the site need chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope='session')
def outside():
    "The addresses outside the site that a page asked for"
    return []


@pytest.fixture(scope='session')
def context(browser, address, outside):
    "A browser context that notes every request for something outside the site; the browser resolves no other host"
    def note(request):
        if not request.url.startswith((address, 'data:', 'blob:')): outside.append(request.url)
    context = browser.new_context(viewport={'width': 1280, 'height': 900}, color_scheme='light')
    context.on('request', note)
    yield context
    context.close()


@pytest.fixture
def tab(context):
    "A page of the browser"
    page = context.new_page()
    yield page
    page.close()
