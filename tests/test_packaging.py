"The wheel, the notebooks and the lists: what is installed is what the notebooks say, and no fact stands in two files"
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(ROOT).parts))
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
SETTINGS = ConfigParser()
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
pytestmark = pytest.mark.xdist_group('packaging')


def packages(name): return [Requirement(o) for o in SETTINGS['DEFAULT'][name].split()]
def text(requirements): return sorted(str(o).replace('"', "'") for o in requirements)


def run(*args, cwd, **env):
    "Run Python, without this checkout on its path"
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=kept | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "The files of the project, without what was built"
    there = tmp_path_factory.mktemp('clone')/'losslab-clone'
    built = shutil.ignore_patterns('.git', '.venv', '.run', '_docs', '_proc', 'build', 'dist', '*.egg-info', '__pycache__', '.*_cache', '.hypothesis', '.ipynb_checkpoints')
    shutil.copytree(ROOT, there, symlinks=True, ignore=built)
    return there


@pytest.fixture(scope='module')
def wheel(clone, tmp_path_factory):
    "A wheel built from the clone, without a network"
    out = tmp_path_factory.mktemp('wheel')
    run('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', out, clone, cwd=out)
    made, = out.glob('*.whl')
    return made


def test_wheel_metadata(wheel):
    "Requirements and extras come from settings.ini; name, licence and authors from pyproject.toml; the version from the package"
    with zipfile.ZipFile(wheel) as z:
        name, = (o for o in z.namelist() if o.endswith('.dist-info/METADATA'))
        meta = message_from_bytes(z.read(name))
        entry = z.read(name.replace('METADATA', 'entry_points.txt')).decode()
        assert any(o.endswith('licenses/LICENSE') for o in z.namelist())
    requires = [Requirement(o) for o in meta.get_all('Requires-Dist')]
    assert text(o for o in requires if not o.marker) == text(packages('requirements'))
    for extra in 'learn', 'dev':
        mine = [o for o in requires if o.marker and o.marker.evaluate({'extra': extra})]
        assert sorted(o.name for o in mine) == sorted(o.name for o in packages(f'{extra}_requirements'))
    assert sorted(meta.get_all('Provides-Extra')) == ['dev', 'learn']
    assert meta['License-Expression'] == 'Apache-2.0' and meta['Author'] == 'losslab contributors' and meta['Requires-Python'] == '>=3.11'
    assert meta['Version'] == re.search(r'__version__ = "(.+)"', (ROOT/'losslab/__init__.py').read_text(encoding='utf-8'))[1]
    assert re.search(r'\[nbdev\]\s+losslab = losslab._modidx:d', entry)
    assert meta.get_payload().strip() == (ROOT/'README.md').read_text(encoding='utf-8').strip()


def test_wheel_holds_the_package_and_nothing_else(wheel):
    "Each module once, no tests, no notebooks, no tools"
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    code = sorted(o for o in names if '.dist-info/' not in o)
    assert code == sorted(str(o.relative_to(ROOT)) for o in (ROOT/'losslab').rglob('*.py') if '__pycache__' not in o.parts)


def test_wheel_works_where_nothing_else_is(wheel, tmp_path):
    "Installed from the wheel alone, in an empty directory, a loss and a module give a number"
    site, empty = tmp_path/'site', tmp_path/'empty'
    empty.mkdir()
    run('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, wheel, cwd=empty)
    code = ("import losslab as ll, torch; from importlib.metadata import version; z, t = torch.zeros(2, 4), torch.tensor([0, 1]); "
            "assert torch.allclose(ll.cross_entropy(z, t), torch.tensor(4.).log()) and ll.CrossEntropyLoss(reduction='sum')(z, t) > 2; "
            "print(ll.__file__, ll.__version__, version('losslab'))")
    file, here, there = run('-W', 'error', '-c', code, cwd=empty, PYTHONPATH=str(site)).split()
    assert Path(file).is_relative_to(site) and here == there
    assert not list(empty.iterdir())


def test_the_lists_of_packages_are_in_settings_only():
    "pyproject.toml and setup.py name no package; constraints.txt pins each, within its bounds"
    assert {'version', 'dependencies', 'optional-dependencies'} <= set(PROJECT['project']['dynamic'])
    assert not {'version', 'dependencies', 'optional-dependencies', 'dependency-groups'} & set(PROJECT['project']) and 'dependency-groups' not in PROJECT
    listed = {o.name for name in SETTINGS['DEFAULT'] for o in packages(name)}
    for name in 'setup.py', 'Makefile', 'tools/__init__.py':
        found = [o for o in listed if re.search(rf'\b{o}\s*[<>=~!]=', (ROOT/name).read_text(encoding='utf-8'))]
        assert found == [], name
    pins = {canonicalize_name(k): v for k, v in re.findall(r'^([\w.-]+)==(\S+)$', (ROOT/'constraints.txt').read_text(encoding='utf-8'), re.MULTILINE)}
    for name in 'requirements', 'dev_requirements', 'site_assets':
        for o in packages(name):
            assert canonicalize_name(o.name) in pins, f'{o.name} is not pinned'
            assert o.specifier.contains(pins[canonicalize_name(o.name)]), f'{o} does not allow {pins[canonicalize_name(o.name)]}'
    assert pins['torch'] == '2.13.0'
    assert canonicalize_name('setuptools') in pins and all(Requirement(o).specifier.contains(pins[Requirement(o).name]) for o in PROJECT['build-system']['requires'])


def test_facts_agree():
    "The oldest Python is one number, the licence one name, and there is no invented address"
    oldest = PROJECT['project']['requires-python'].removeprefix('>=')
    assert PROJECT['tool']['ruff']['target-version'] == 'py' + oldest.replace('.', '')
    assert f"({oldest.replace('.', ',')})" in (ROOT/'Makefile').read_text(encoding='utf-8')
    assert 'Apache License' in (ROOT/'LICENSE').read_text(encoding='utf-8')[:300] and PROJECT['project']['license'] == 'Apache-2.0'
    if 'urls' not in PROJECT['project']:
        assert [str(o.relative_to(ROOT)) for o in [*(ROOT/'losslab').glob('*.py'), ROOT/'README.md'] if re.search(r'github\.com/\S*losslab|losslab\S*github\.io', o.read_text(encoding='utf-8'))] == []


def test_modules_are_those_of_the_notebooks(clone):
    "Exporting the notebooks again changes no module, no index, no list of names"
    kept = {o: o.read_bytes() for o in (clone/'losslab').rglob('*.py')}
    run('-m', 'tools.export', cwd=clone, PYTHONPATH=str(clone))
    made = {o: o.read_bytes() for o in (clone/'losslab').rglob('*.py')}
    assert sorted(o.name for o in {**kept, **made} if kept.get(o) != made.get(o)) == []
    assert {f'losslab/{o.name}' for o in kept if o.name not in ('__init__.py', '_modidx.py')} == exported_modules()


def exported_modules():
    "The modules that the notebooks name"
    code = '\n'.join(''.join(c['source']) for o in NOTEBOOKS for c in json.loads(o.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    return {f'losslab/{o}.py' for o in re.findall(r'^#\|\s*default_exp (\w+)', code, re.MULTILINE)}


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda o: o.stem)
def test_notebook_is_clean(notebook, tmp_path):
    "Unique ids; no error, no warning, no path of a machine in an output; nothing left that nbdev-clean would remove"
    nb = json.loads(notebook.read_text(encoding='utf-8'))
    ids = [o['id'] for o in nb['cells']]
    assert len(set(ids)) == len(ids)
    outputs = [(o['id'], out) for o in nb['cells'] for out in o.get('outputs', [])]
    assert [i for i, out in outputs if out['output_type'] == 'error' or out.get('name') == 'stderr'] == []
    found = [(i, m[0]) for i, out in outputs for part in words(out) if (m := re.search(r'/(home|tmp|root|Users|usr|work|mnt|var)/\w+|site-packages|\w*Warning:|0x[0-9a-f]{8,}', part))]
    assert found == []
    copy = tmp_path/notebook.name
    shutil.copy(notebook, copy)
    from nbdev.clean import clean_nb, process_write
    process_write(warn_msg='', proc_nb=clean_nb, f_in=copy)
    assert json.loads(copy.read_text(encoding='utf-8')) == nb


def words(output):
    "The text of an output, without images"
    data = {'text/plain': output.get('text', [])} | output.get('data', {})
    return [''.join(v) for k, v in data.items() if k.startswith('text/')]
