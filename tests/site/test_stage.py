"What the site's tools do between nbdev and the renderer, on small inputs"
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest

from tools import check, readme, stage


def test_directives_leave_the_prose_and_nothing_else_does():
    assert stage.without_directives('#| export: true\n#| hide\nText #| stays') == 'Text #| stays'
    assert stage.without_directives('# Title\n\nText') == '# Title\n\nText'
    assert stage.without_directives('#| export: true') == ''


def test_links_are_mended():
    table = {'/foundations/core.html#_keep': '/source/core.html#_keep'}
    mend = {'[a](/foundations/core.html#_keep)': '[a](/source/core.html#_keep)',
            '[b](../classification/10_categorical.ipynb#dim)': '[b](../classification/categorical.ipynb#dim)',
            '[c](https://example.org/10_categorical.ipynb)': '[c](https://example.org/10_categorical.ipynb)',
            '[d](#here), $f(x)$': '[d](#here), $f(x)$'}
    assert {k: stage.relink(k, table) for k in mend} == mend


def test_a_link_keeps_no_link_inside():
    assert stage.unnest('[[`a`](/x.html#a)](y.ipynb), [see [`a`](/x.html#a) *here*](y.ipynb)') == '[`a`](y.ipynb), [see `a` *here*](y.ipynb)'
    for same in ('[`a`](/x.html#a)', '[a](b) and [`c`](d)', '`x[0]`', '[[1, 2], [3]]'): assert stage.unnest(same) == same


def test_a_heading_leaves_the_anchor_to_the_symbol_of_its_name():
    assert stage.yield_anchors('## Softmax\n\nText\n\n## The softmax', {'softmax'}) == '## Softmax {#softmax-section}\n\nText\n\n## The softmax'


def test_pieces_of_a_module_are_all_of_it():
    code = '"Doc"\nimport a\n\n@a.b\ndef f():\n    return 1\n\nX = 2\n\nclass C:\n    def g(self): pass\n'
    pieces = stage.pieces(code)
    assert [name for name, _ in pieces] == ['', 'f', 'C']
    assert pieces[1][1] == '@a.b\ndef f():\n    return 1\n\nX = 2'
    assert '\n'.join(text for _, text in pieces).replace('\n\n', '\n') == code.strip().replace('\n\n', '\n')


def show_doc_cell(name, body):
    text = f'---\n\n[source](/source/m.html#{name}){{target="_blank"}}\n\n### {name}\n\n```python\ndef {name}(x)\n```\n\n*{body}*'
    return {'cell_type': 'code', 'source': f'show_doc({name})', 'outputs': [{'data': {'text/markdown': text}}]}


def test_api_entry_keeps_its_signature_unless_the_code_follows():
    code = {'cell_type': 'code', 'source': '#| code-fold: show\n#| exports: true\ndef two(x): return x', 'outputs': []}
    nb = {'cells': [show_doc_cell('one', 'First'), {'cell_type': 'markdown', 'source': 'Text'}, show_doc_cell('two', 'Second'), code]}
    stage.mend_api(nb)
    one, two = (nb['cells'][i]['outputs'][0]['data']['text/markdown'] for i in (0, 2))
    assert 'def one(x)' in one and '.api-with-code' not in one and '{#one .api-name}' in one
    assert 'def two(x)' not in two and '.api-with-code' in two and '*Second*' in two
    assert nb['cells'][3]['source'] == '#| exports: true\ndef two(x): return x'


@pytest.mark.parametrize('name, shown', [('_Kernel.run', False), ('_run', False), ('Kernel._run', False), ('Kernel.__init__', True), ('run_it', True)])
def test_private_names_have_no_entry(name, shown):
    nb = {'cells': [show_doc_cell(name, 'Text')]}
    stage.mend_api(nb)
    assert bool(nb['cells'][0]['outputs']) == shown


@pytest.mark.parametrize('git_url, links', [
    ('', ['10_a.ipynb']),
    ('https://github.com/o/r', ['10_a.ipynb', 'https://colab.research.google.com/github/o/r/blob/main/nbs/s/10_a.ipynb', 'https://github.com/o/r/edit/main/nbs/s/10_a.ipynb']),
])
def test_buttons_of_a_page(monkeypatch, git_url, links):
    cfg = SimpleNamespace(git_url=git_url, user='o', repo='r', branch='main', nbs_path=PurePosixPath('/x/nbs'))
    monkeypatch.setattr(stage, 'get_config', lambda: cfg)
    assert check.PageReader(stage.source(stage.run_it(PurePosixPath('s/10_a.ipynb')))).links == links


@pytest.mark.parametrize('body, complaint', [
    ('<a href="a/b.html#x">', None),
    ('<a href="a/c.html">', 'leads to no file'),
    ('<a href="a/b.html#y">', 'names no anchor'),
    ('<p id="p"><p id="p">', 'two elements have the id p'),
    ('<script src="https://example.org/a.js"></script>', 'from outside'),
    ('<link rel="stylesheet" href="//example.org/a.css">', 'from outside'),
    ('<style>p { background: url(https://example.org/a.png) }</style>', 'from outside'),
    ('<img src="no.png">', 'not there'),
    ('<a href="https://example.org/">', None),
])
def test_the_check_of_the_site_can_fail(tmp_path, body, complaint):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'b.html').write_text('<a id="x" href="../index.html">')
    (tmp_path/'index.html').write_text(body)
    found = check.problems(tmp_path)
    assert found == [] if complaint is None else len(found) == 1 and complaint in found[0]


def test_readme_shows_code_and_output_and_no_directives():
    cell = {'cell_type': 'code', 'source': ['#| eval: true\n', '1+1'], 'outputs': [{'output_type': 'execute_result', 'data': {'text/plain': ['2']}}]}
    assert readme.block(cell) == '```python\n1+1\n```\n\n```\n2\n```'
    assert readme.block({**cell, 'source': ['#| hide\n', '1+1']}) == ''
    assert readme.block({'cell_type': 'markdown', 'source': '#| export\n[a](s/10_a.ipynb) [b](https://b.org) [c](#d)'}) == '[a](nbs/s/10_a.ipynb) [b](https://b.org) [c](#d)'
