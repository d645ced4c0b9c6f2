"The lists of notebooks say what nbs/ holds, in the sidebar and on the home page"
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(ROOT/'nbs').parts))


def entries(contents):
    "The pages that a sidebar of _quarto.yml names"
    for e in contents:
        if isinstance(e, str): yield e
        elif 'href' in e: yield e['href']
        else: yield from entries(e['contents'])


def test_every_notebook_is_in_the_sidebar_once_and_every_entry_is_a_notebook():
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    assert sorted(entries(sidebar['contents'])) == NOTEBOOKS


def test_lists_are_up_to_date():
    run = subprocess.run([sys.executable, '-m', 'tools.contents', '--check'], check=False, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('path', NOTEBOOKS)
def test_notebook_is_saved_clean_and_complete(path):
    "The page shows what the notebook has saved, so it must be there; ids must be unique, or links to cells are not"
    nb = json.loads((ROOT/'nbs'/path).read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    ids = [c['id'] for c in nb['cells']]
    assert len(set(ids)) == len(ids), 'two cells have the same id'
    assert not any(o['output_type'] == 'error' for c in code for o in c['outputs']), 'a saved output is an error'
    assert any(c['outputs'] for c in code), 'no output is saved: make prepare'
