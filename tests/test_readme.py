"README.md says what the home page says"
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_is_made_from_the_home_page():
    run = subprocess.run([sys.executable, '-m', 'tools.readme', '--check'], check=False, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r'\]\((?!https?:|#)([^)#\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert links and [link for link in links if not (ROOT/link).exists()] == []
