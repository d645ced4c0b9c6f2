"Export the notebooks to losslab/, leaving untouched what did not change, so that nothing downstream is done twice"
import os
from pathlib import Path

from nbdev.doclinks import nbdev_export

ROOT = Path(__file__).parent.parent


def outputs():
    "The files that an export may write"
    return [ROOT/'pyproject.toml', ROOT/'nbs'/'llms.txt', *(ROOT/'losslab').rglob('*.py')]


def snapshot():
    "Contents and modification time of every file that an export may write"
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in outputs() if p.exists()}


def restore_times(before):
    "Give back its old modification time to each file whose contents are the same; return the others"
    changed = []
    for p in filter(Path.exists, outputs()):
        old, mtime = before.get(p, (None, 0))
        if p.read_bytes() == old: os.utime(p, ns=(mtime, mtime))
        else: changed.append(p)
    return changed


def main():
    "Export, and name the files that changed"
    os.chdir(ROOT)
    before = snapshot()
    nbdev_export.__wrapped__()
    for p in restore_times(before): print(f'  wrote {p.relative_to(ROOT)}')


if __name__ == '__main__': main()
