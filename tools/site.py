"Build the site: stage the notebooks, render them with Quarto or else with smalldocs, make the site whole without a network, check it"
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import djangocms_katex

from tools import check
from tools.stage import ROOT, STAGE, stage, staged_name

SITE = ROOT/'_docs'
KATEX = Path(djangocms_katex.__file__).parent/'static'/'djangocms_katex'/'vendor'/'katex'
KATEX_FILES = ('katex.min.css', 'katex.min.js', 'contrib/auto-render.min.js', 'LICENSE')
KATEX_CDN = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/"]+/dist')
FONT_IMPORT = re.compile(r'@import\s+url\(["\']?https?://.*?["\']?\);?')


def say(text):
    "Print a line at once, so that a long step has a name while it runs"
    print(text, flush=True)


def with_quarto():
    "Render with Quarto; return its warnings"
    run = subprocess.run(['quarto', 'render', str(STAGE)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode: sys.exit(f'{run.stdout}\nquarto failed')
    return [line for line in run.stdout.splitlines() if 'WARN' in line]


def with_smalldocs():
    "Render with smalldocs; return its warnings"
    from smalldocs.config import BuildError, ConfigError
    from smalldocs.site import build
    try: return build(STAGE, quiet=True).warnings
    except (BuildError, ConfigError) as e: sys.exit(f'smalldocs: {e}')


def copy_katex(out):
    "Give the site its own KaTeX"
    lib = out/'site_libs'/'katex'
    (lib/'contrib').mkdir(parents=True)
    for name in KATEX_FILES: shutil.copyfile(KATEX/name, lib/name)
    shutil.copytree(KATEX/'fonts', lib/'fonts')


def bring_home(out):
    "Make pages and style sheets load from the site what a renderer would load from elsewhere"
    for page in out.rglob('*.html'): rewrite(page, KATEX_CDN, '../' * (len(page.relative_to(out).parts) - 1) + 'site_libs/katex')
    for css in out.rglob('*.css'): rewrite(css, FONT_IMPORT, '')


def rewrite(path, pattern, new):
    "Replace every match of `pattern` in the file `path`"
    old = path.read_text(encoding='utf-8')
    text = pattern.sub(new, old)
    if text != old: path.write_text(text, encoding='utf-8')


def index_for_files(out):
    "The search index as a script, because a page opened from a folder may not fetch"
    index = out/'search.json'
    if index.exists(): (out/'search.js').write_text(f'window.searchIndex = {index.read_text(encoding="utf-8")};\n', encoding='utf-8')


def finish(out, notebooks):
    "Add to the rendered site in `out` what no renderer does: KaTeX, notebooks to download, search from a folder"
    copy_katex(out)
    bring_home(out)
    index_for_files(out)
    for path in notebooks: shutil.copyfile(ROOT/'nbs'/path, out/staged_name(path).with_name(path.name))


def stop_at(found):
    "End here if there are problems"
    if not found: return
    for problem in found: print(f'  {problem}', file=sys.stderr)
    sys.exit(f'The site has {len(found)} problem{"s" * (len(found) > 1)}; what was rendered is in {STAGE.relative_to(ROOT)}/_docs')


def main():
    "Build the site into _docs, which stays as it was if anything is wrong"
    start, out = time.time(), STAGE/'_docs'
    say('Staging the notebooks')
    notebooks = stage()
    quarto = shutil.which('quarto')
    say(f'Rendering {len(notebooks)} notebooks with {"Quarto" if quarto else "smalldocs"}')
    warnings = with_quarto() if quarto else with_smalldocs()
    finish(out, notebooks)
    stop_at([*warnings, *check.problems(out)])
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(out, SITE)
    say(f'Rendered in {time.time() - start:.0f} s')


if __name__ == '__main__': main()
