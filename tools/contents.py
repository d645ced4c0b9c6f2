"The list of notebooks, by section: in the sidebar of _quarto.yml and in the map on the home page"
import json
import re
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
NBS, CONFIG, INDEX = ROOT/'nbs', ROOT/'_quarto.yml', ROOT/'nbs'/'index.ipynb'
MAP_HEAD = '| section | notebook | what it shows |\n|:--|:--|:--|\n'
SIDEBAR = re.compile(r'(?P<pre># contents: begin.*?\n)(?P<body>.*?)(?P<post> *# contents: end)', re.S)


@dataclass
class Notebook:
    "A notebook of the site"
    path: Path # relative to nbs/
    title: str # its first heading
    claim: str # the sentence under it

    @property
    def section(self): return self.path.parent.name

    @property
    def order(self): return int(re.match(r'(\d*)', self.path.name)[1] or 0), str(self.path)


def text_of(cell):
    "The source of a cell of a notebook's JSON"
    return ''.join(cell['source'])


def read(path):
    "The title and the claim of the notebook at `path`, from its first heading"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    heads = (re.match(r'# (.+)\n+> *([^\n]+)', text_of(c)) for c in cells if c['cell_type'] == 'markdown')
    found = next(filter(None, heads), None)
    if not found: raise SystemExit(f'{path.relative_to(ROOT)}: no cell with a title and a claim ("# Title", then "> claim")')
    return Notebook(path.relative_to(NBS), found[1].strip(), found[2].strip())


def notebooks():
    "Every notebook in a section, in reading order"
    found = NBS.glob('[!._]*/[!._]*.ipynb')
    return sorted(map(read, found), key=lambda nb: nb.order)


def by_section(nbs):
    "`(section, notebooks)` pairs, the section with the lowest number first"
    first = {}
    for nb in nbs: first.setdefault(nb.section, nb.order)
    nbs = sorted(nbs, key=lambda nb: (first[nb.section], nb.order))
    return [(name.capitalize(), list(group)) for name, group in groupby(nbs, key=lambda nb: nb.section)]


def sidebar(nbs):
    "The sidebar of `nbs`, as lines for _quarto.yml"
    lines = []
    for name, group in by_section(nbs):
        lines += [f'- section: {name}', '  contents:', *(f'    - {nb.path.as_posix()}' for nb in group)]
    return ''.join(f'      {line}\n' for line in lines)


def site_map(nbs):
    "The map of `nbs`, as a table for the home page"
    rows = []
    for name, group in by_section(nbs):
        for i, nb in enumerate(group):
            rows.append(f'| {"" if i else f"**{name}**"} | [{nb.title}]({nb.path.as_posix()}) | {nb.claim} |')
    return MAP_HEAD + '\n'.join(rows)


def write(path, text):
    "Write `text` to `path` if that changes the file; say whether it did"
    if path.exists() and path.read_text(encoding='utf-8') == text: return False
    path.write_text(text, encoding='utf-8')
    return True


def new_config(nbs):
    "_quarto.yml with its sidebar brought up to date"
    text = CONFIG.read_text(encoding='utf-8')
    if not SIDEBAR.search(text): raise SystemExit('_quarto.yml: the lines "# contents: begin" and "# contents: end" are gone')
    return SIDEBAR.sub(lambda m: m['pre'] + sidebar(nbs) + m['post'], text)


def new_index(nbs):
    "The home page with its map brought up to date"
    nb = json.loads(INDEX.read_text(encoding='utf-8'))
    cells = [c for c in nb['cells'] if c['cell_type'] == 'markdown' and text_of(c).startswith(MAP_HEAD.strip())]
    if len(cells) != 1: raise SystemExit(f'nbs/index.ipynb: {len(cells)} cells begin with the head of the map, not one')
    cells[0]['source'] = site_map(nbs).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def main():
    "Bring both lists up to date, or with --check say whether they are"
    nbs = notebooks()
    new = {CONFIG: new_config(nbs), INDEX: new_index(nbs)}
    if '--check' not in sys.argv: return [print(f'  wrote {p.relative_to(ROOT)}') for p, text in new.items() if write(p, text)]
    stale = [str(p.relative_to(ROOT)) for p, text in new.items() if p.read_text(encoding='utf-8') != text]
    if stale: sys.exit(f'The list of notebooks in {" and ".join(stale)} is not what nbs/ holds. Run: make prepare')


if __name__ == '__main__': main()
