"From the notebooks that nbdev has processed to pages that a renderer can read: every seam between the two is mended here"
import ast
import hashlib
import html
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath

import yaml
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, patch_name
from nbdev.serve import proc_nbs

ROOT = Path(__file__).parent.parent
PROC, STAGE, DIGEST = ROOT/'_proc', ROOT/'.run'/'stage', ROOT/'.run'/'processed'
LINK = re.compile(r'(?<=\]\()[^()\s]+')
SYMBOL_LINK = r'\[`([^`]+)`\]\([^()\s]*\)'
LINK_TEXT = re.compile(rf'\[((?:[^\[\]]|{SYMBOL_LINK})*)\](?=\()')
OUTSIDE = re.compile(r'[a-z][a-z0-9+.-]*:|//', re.I)
DIRECTIVES = re.compile(r'(?:#\| *\w.*(?:\n|$))+')
HEADING = re.compile(r'^#{1,6} +([^{}\n]+)$', re.M)
NBDEV_MARK = re.compile(r'^# %% .*\n', re.M)
SHOW_DOC = re.compile(r'---\n\n(?:\[source\]\((?P<url>[^)]*)\)\{.*?\}\n\n)?(?P<marks>#+) (?P<name>\S+)\n\n(?P<body>.*)', re.S)
FOLD = re.compile(r'^#\| code-(fold|summary):.*\n', re.M)
SIGNATURE = re.compile(r'```python\n.*?\n```\n*', re.S)


# ---- what nbdev does

def inputs_digest():
    "One number for everything but the notebook itself that shows in a processed notebook"
    files = [ROOT/'pyproject.toml', *sorted((ROOT/'losslab').rglob('*.py'))]
    return hashlib.sha256(b'\0'.join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def process():
    "Let nbdev process the notebooks into _proc: the new ones, or all of them if a module (so a link or a signature) changed"
    digest = inputs_digest()
    force = not DIGEST.exists() or DIGEST.read_text() != digest
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('KERAS_BACKEND', 'torch')  # nbdev runs the imports of a page, and not the cell before them that says so
    proc_nbs(n_workers=min(os.cpu_count() or 1, 4), force=force)
    DIGEST.parent.mkdir(exist_ok=True)
    DIGEST.write_text(digest)


# ---- notebooks

def source(cell):
    "The source of a cell of a notebook's JSON"
    return ''.join(cell['source'])


def page_of(path):
    "Where the page of the notebook at `path` is: `classification/10_categorical.ipynb` -> `classification/categorical.html`"
    return PurePosixPath(nbpath2html(path).as_posix())


def staged_name(path):
    "The name under which the notebook at `path` is staged, so that every renderer gives its page the same name"
    return page_of(PurePosixPath(path)).with_suffix('.ipynb')


def show_docs(nb):
    "`(output, match)` for each API entry that nbdev put in `nb`"
    outs = (o for c in nb['cells'] if c['cell_type'] == 'code' for o in c['outputs'])
    texts = ((o, ''.join(o.get('data', {}).get('text/markdown', ''))) for o in outs)
    return [(o, m) for o, text in texts if (m := SHOW_DOC.fullmatch(text))]


# ---- links

def module_index():
    "nbdev's index of the package as it was exported, name -> (page#anchor, file)"
    scope = {}
    exec((ROOT/'losslab'/'_modidx.py').read_text(encoding='utf-8'), scope)
    return {name: where for mod in scope['d']['syms'].values() for name, where in mod.items()}


def link_table(documented):
    "What each link that nbdev writes becomes: an API entry where there is one, else the line of code"
    lookup, repo, table = NbdevLookup(), get_config().git_url, {}
    for name, (place, file) in module_index().items():
        short = name.removeprefix(f'losslab.{PurePosixPath(file).stem}.')
        code = lookup.code(short) if repo else f'/source/{PurePosixPath(file).stem}.html#{short.split(".")[0]}'
        table.setdefault(lookup.code(short), code)
        table.setdefault(lookup.doc(name), f'/{place}' if place in documented else code)
    return table


def relink(text, table):
    "Mend every link of a Markdown `text`: nbdev's by `table`, and those between notebooks"
    def new(m):
        url = m[0]
        path, mark, anchor = url.partition('#')
        if url in table: return table[url]
        if path.endswith('.ipynb') and not OUTSIDE.match(url): return f'{staged_name(path)}{mark}{anchor}'
        return url
    return LINK.sub(new, text)


# ---- the pages

def raw_html(text):
    "A cell that both renderers pass through as it is"
    return {'cell_type': 'markdown', 'metadata': {}, 'source': f'```{{=html}}\n{text}\n```\n'}


def button(href, icon, text, extra=''):
    "One button above a page"
    return f'<a class="btn btn-sm run-button" href="{html.escape(href)}" {extra}><i class="bi bi-{icon}" aria-hidden="true"></i> {text}</a>'


def run_it(path):
    "The buttons above the page of the notebook at `path`: download it, and with a repository open it in Colab or edit it"
    cfg = get_config()
    nb = f'{cfg.branch}/{cfg.nbs_path.name}/{path}'
    buttons = [button(path.name, 'download', 'Run it yourself', 'download title="Download this notebook"')]
    if 'github.com/' in cfg.git_url:
        buttons.append(button(f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{nb}', 'play-circle', 'Open in Colab'))
    if cfg.git_url: buttons.append(button(f'{cfg.git_url}/edit/{nb}', 'pencil', 'Edit this page'))
    hint = '<span class="run-hint">with <code>pip install "losslab[learn]"</code></span>'
    return raw_html(f'<div class="run-it">{buttons[0]} {hint} {" ".join(buttons[1:])}</div>')


def defines(cell, name):
    "Does the source of the function `name` stand in this cell?"
    return cell['cell_type'] == 'code' and bool(re.search(rf'^(async )?def {re.escape(name)}\(', source(cell), re.M))


def api_box(m, signature, code_follows):
    "An API entry: its name as a heading, [source], and what it is, with the `signature` unless the code says it"
    body = m['body'] if signature else SIGNATURE.sub('', m['body'], count=1)
    title = re.sub(r'([_*])', r'\\\1', m['name'])
    link = f'[source]({m["url"]}){{.api-source}}\n\n' if m['url'] else ''
    classes = '.api .api-with-code' if code_follows else '.api'
    return f'::: {{{classes}}}\n{m["marks"]} {title} {{#{m["name"].lower()} .api-name}}\n\n{link}{body}\n:::\n'


def drop_private(nb):
    "Take from `nb` the API entries of what begins with an underscore, as methods of private classes do"
    private = {id(o) for o, m in show_docs(nb) if re.search(r'(^|\.)_(?!_)', m['name'])}
    for cell in nb['cells']:
        if cell['cell_type'] == 'code': cell['outputs'] = [o for o in cell['outputs'] if id(o) not in private]


def mend_api(nb):
    "Dress the API entries of `nb`, and join to each the exported code that follows it"
    drop_private(nb)
    docs, cells = {id(o): m for o, m in show_docs(nb)}, nb['cells']
    following = None
    for cell in reversed(cells):
        found = [(o, docs[id(o)]) for o in cell.get('outputs', []) if id(o) in docs]
        for out, m in found:
            out['data'] = {'text/markdown': api_box(m, not (following and defines(following, m['name'])), bool(following))}
        if not found: following = cell if cell['cell_type'] == 'code' and '#| exports' in source(cell) else None
        elif following: following['source'] = FOLD.sub('', source(following))


def without_directives(text):
    "The Markdown `text` without the lines of directives that it begins with"
    m = DIRECTIVES.match(text)
    return text[m.end():] if m else text


def unnest(text):
    "The Markdown `text` without the links to symbols that nbdev put inside the text of another link"
    return LINK_TEXT.sub(lambda m: f'[{re.sub(SYMBOL_LINK, lambda s: f"`{s[1]}`", m[1])}]', text)


def yield_anchors(text, names):
    "The Markdown `text`, a heading that is spelt like one of the symbols `names` leaving the anchor to the symbol"
    def new(m):
        anchor = re.sub(r'[^\w\s.-]', '', m[1]).strip().lower().replace(' ', '-')
        return f'{m[0]} {{#{anchor}-section}}' if anchor in names else m[0]
    return HEADING.sub(new, text)


def prose(text, table, names):
    "The `text` of a Markdown cell, mended"
    return yield_anchors(relink(unnest(without_directives(text)), table), names)


def mend_text(nb, table):
    "Take nbdev's directives out of the prose of `nb`, and mend the anchors and links of prose and output"
    names = {m['name'].lower() for _, m in show_docs(nb)}
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown': cell['source'] = prose(source(cell), table, names)
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            if 'text/markdown' in data: data['text/markdown'] = relink(''.join(data['text/markdown']), table)


def mend_front(nb):
    "Take from the front matter the file name that the staged notebook has already"
    front = [line for line in source(nb['cells'][0]).splitlines() if not line.startswith('output-file:')]
    nb['cells'][0]['source'] = '\n'.join(front)


def mend(nb, path, table):
    "The processed notebook `nb`, from `path`, as a page"
    mend_front(nb)
    mend_text(nb, table)
    mend_api(nb)
    nb['cells'].insert(1, run_it(path))
    return nb


# ---- the code, where no repository shows it

def top_level(code):
    "`(name, first line)` of each definition of a module, a decorator being its first line"
    defs = [n for n in ast.parse(code).body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    return [(patch_name(n) if isinstance(patch_name(n), str) else n.name, min([n.lineno, *(d.lineno for d in n.decorator_list)])) for n in defs]


def pieces(code):
    "`(name, code)` of each definition of a module with what follows it, after a nameless piece for its head"
    lines, marks = code.splitlines(keepends=True), [('', 1), *top_level(code)]
    ends = [line for _, line in marks[1:]] + [len(lines) + 1]
    return [(name, ''.join(lines[line-1:end-1]).strip('\n')) for (name, line), end in zip(marks, ends)]


def source_page(module, title, page):
    "The page that shows the code of `module`, with an anchor for each definition"
    text, seen = f'---\ntitle: "losslab.{module.stem}"\nsearch: false\n---\n\nThe code that [{title}](/{page}) exports.\n', set()
    for name, code in pieces(NBDEV_MARK.sub('', module.read_text(encoding='utf-8'))):
        head = '' if not name or name in seen else '\n### {} {{#{} .source-name}}\n'.format(re.sub(r'([_*])', r'\\\1', name), name)
        text += f'{head}\n````python\n{code}\n````\n' if code else head
        seen.add(name)
    return text


def stage_sources(titles):
    "Write a source page for each module; `titles` says which page it comes from"
    out = STAGE/'source'
    out.mkdir()
    for page, title in titles.items():
        module = ROOT/'losslab'/f'{page.stem}.py'
        if module.exists(): (out/f'{page.stem}.qmd').write_text(source_page(module, title, page), encoding='utf-8')


# ---- the whole

def rename_entries(entry):
    "A sidebar entry of _quarto.yml, and those below it, with staged names for notebooks"
    if isinstance(entry, str): return str(staged_name(entry)) if entry.endswith('.ipynb') else entry
    if isinstance(entry, list): return [rename_entries(e) for e in entry]
    if isinstance(entry, dict): return {k: rename_entries(v) for k, v in entry.items()}
    return entry


def stage_config():
    "Write the site's configuration, with a link to the repository if there is one"
    cfg, repo = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8')), get_config().git_url
    web = cfg['website']
    web['sidebar'] = rename_entries(web['sidebar'])
    if repo: web['navbar'].setdefault('right', []).append({'icon': 'github', 'href': repo, 'aria-label': 'Repository'})
    (STAGE/'_quarto.yml').write_text(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), encoding='utf-8')


def title_of(nb):
    "The title in the front matter that nbdev wrote"
    return yaml.safe_load(source(nb['cells'][0]).strip().strip('-'))['title']


def read_processed():
    "The processed notebooks, by their path"
    paths = sorted(p.relative_to(PROC) for p in PROC.rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(PROC).parts))
    return {p: json.loads((PROC/p).read_text(encoding='utf-8')) for p in paths}


def stage():
    "Fill .run/stage with everything that a renderer needs; return the notebooks' paths"
    process()
    nbs = read_processed()
    documented = {f'{page_of(p)}#{m["name"].lower()}' for p, nb in nbs.items() for _, m in show_docs(nb)}
    table = link_table(documented)
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(PROC, STAGE, ignore=shutil.ignore_patterns('*.ipynb', '_*'))
    for path, nb in nbs.items():
        out = STAGE/staged_name(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(mend(nb, path, table), ensure_ascii=False), encoding='utf-8')
    if not get_config().git_url: stage_sources({page_of(p): title_of(nb) for p, nb in nbs.items()})
    stage_config()
    return list(nbs)
