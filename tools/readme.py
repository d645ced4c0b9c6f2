"README.md, made from the home page: its prose, its code and what the code printed"
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
INDEX, README = ROOT/'nbs'/'index.ipynb', ROOT/'README.md'
DIRECTIVES = re.compile(r'(?:#\| *\w.*(?:\n|$))+')
NOTEBOOK_LINK = re.compile(r'\]\((?![a-z]+:|/|#)([^)\s]+)\)')
MADE_FROM = '<!-- Made from nbs/index.ipynb by `make readme`: edit that -->\n\n'


def split(cell):
    "The directives at the top of a cell, and the rest of it"
    text = ''.join(cell['source'])
    m = DIRECTIVES.match(text)
    return (m[0], text[m.end():].strip()) if m else ('', text.strip())


def fenced(text, lang=''):
    "A fenced block of `text`"
    return f'```{lang}\n{text.rstrip()}\n```'


def output(out):
    "What one output of a cell shows, as Markdown, or nothing for a figure"
    if out['output_type'] == 'stream': return fenced(''.join(out['text']))
    data = out.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if any(kind.startswith('image/') for kind in data): return ''
    return fenced(''.join(data['text/plain'])) if 'text/plain' in data else ''


def block(cell):
    "One cell as Markdown"
    directives, text = split(cell)
    if cell['cell_type'] == 'markdown': return NOTEBOOK_LINK.sub(r'](nbs/\1)', text)
    if cell['cell_type'] != 'code' or 'hide' in directives: return ''
    shown = [] if 'echo: false' in directives else [fenced(text, 'python')]
    return '\n\n'.join([*shown, *filter(None, map(output, cell['outputs']))])


def readme():
    "The text of README.md"
    cells = json.loads(INDEX.read_text(encoding='utf-8'))['cells']
    return MADE_FROM + '\n\n'.join(filter(None, map(block, cells))) + '\n'


def main():
    "Write README.md, or with --check say whether it is what the home page says"
    new, old = readme(), README.read_text(encoding='utf-8') if README.exists() else ''
    if '--check' in sys.argv: sys.exit(0 if new == old else 'README.md is not what nbs/index.ipynb says. Run: make readme')
    if new != old: README.write_text(new, encoding='utf-8')


if __name__ == '__main__': main()
