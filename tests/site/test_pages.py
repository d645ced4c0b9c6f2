"The built site, read by a browser that has no network; `make test` runs this file in one process: one site, one server, one browser"
import re
from dataclasses import dataclass, field

import pytest

from tools import check

# What the browser tells about a page. `raw` is mathematics, a directive or a link that stayed source, outside code
SURVEY = r'''() => {
  const shown = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (!parent.closest("code, pre, script, style, textarea, .katex")) shown.push(walk.currentNode.data);
  }
  const size = e => { const r = e.getBoundingClientRect(); return Math.min(r.width, r.height); };
  const open = e => !e.closest("details:not([open])");
  return {
    raw: shown.join("\n").match(/.{0,20}(\\\[|\\\]|\\\(|\\\)|\$\$|#\||\]\().{0,20}/g) || [],
    math: document.querySelectorAll(".math").length,
    rendered: document.querySelectorAll(".math .katex").length,
    badMath: [...document.querySelectorAll(".katex-error")].map(e => e.textContent),
    badImages: [...document.querySelectorAll("main img")].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80)),
    flatDrawings: [...document.querySelectorAll("main .cell-output svg")].filter(open).filter(s => size(s) < 20).length,
    figures: document.querySelectorAll("main img, main .cell-output svg").length,
  };
}'''
# Elements that stick out of a phone's screen and are in no box that scrolls
TOO_WIDE = r'''() => [...document.querySelectorAll("body *")].filter(e => {
  const r = e.getBoundingClientRect();
  if (!r.width || r.right <= innerWidth + 1 || e.closest("#quarto-sidebar, .katex-mathml")) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).slice(0, 3).map(e => e.outerHTML.slice(0, 120))'''


@dataclass
class Visit:
    "What the browser saw of one page"
    name: str
    trouble: list = field(default_factory=list) # console errors, exceptions and failed requests
    survey: dict = field(default_factory=dict)
    too_wide: list = field(default_factory=list)
    scroll: int = 0


def visit(tab, address, name):
    "Open the page `name` on a wide screen and on a phone"
    v = Visit(name)
    def note(kind): return lambda e: v.trouble.append(f'{kind}: {getattr(e, "text", None) or getattr(e, "url", None) or e}')
    listeners = {'pageerror': note('exception'), 'requestfailed': note('failed'),
                 'console': lambda m: m.type in ('error', 'warning') and note(m.type)(m),
                 'response': lambda r: r.status >= 400 and note(r.status)(r)}
    for event, f in listeners.items(): tab.on(event, f)
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.goto(address + name, wait_until='load')
    v.survey = tab.evaluate(SURVEY)
    tab.set_viewport_size({'width': 390, 'height': 844})
    v.too_wide, v.scroll = tab.evaluate(TOO_WIDE), tab.evaluate('document.documentElement.scrollWidth')
    for event, f in listeners.items(): tab.remove_listener(event, f)
    return v


@pytest.fixture(scope='session')
def visits(context, address, site):
    "Every page of the site, visited once"
    tab = context.new_page()
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    visits = [visit(tab, address, name) for name in names]
    tab.close()
    return visits


def test_files_are_whole(site):
    "No link or anchor that leads nowhere, no id twice, nothing loaded from another host"
    assert check.problems(site) == []


def test_pages_load_without_trouble_or_network(visits, outside):
    assert {v.name: v.trouble for v in visits if v.trouble} == {}
    assert outside == []
    assert any(v.name == 'index.html' for v in visits)


def test_nothing_stays_source(visits):
    assert {v.name: v.survey['raw'] for v in visits if v.survey['raw']} == {}


def test_mathematics_is_rendered(visits):
    assert {v.name: v.survey['badMath'] for v in visits if v.survey['badMath']} == {}
    assert {v.name for v in visits if v.survey['math'] != v.survey['rendered']} == set()
    assert sum(v.survey['rendered'] for v in visits) > 10


def test_figures_show(visits):
    assert {v.name: v.survey['badImages'] for v in visits if v.survey['badImages']} == {}
    assert {v.name for v in visits if v.survey['flatDrawings']} == set()
    assert sum(v.survey['figures'] for v in visits) > 0


def test_phone_has_no_sideways_scroll(visits):
    assert {v.name: v.too_wide for v in visits if v.too_wide} == {}
    assert {v.name: v.scroll for v in visits if v.scroll > 390} == {}


def search(tab, words):
    "Type `words` in the search box; the result on top"
    tab.locator('.smalldocs-search input, #quarto-search input').first.fill(words)
    return tab.locator('.search-result').first


@pytest.mark.parametrize('words', ['cross_entropy', 'll.cross_entropy', 'cross_entropy()'])
def test_search_lands_on_the_definition(tab, address, words):
    tab.goto(f'{address}index.html')
    search(tab, words).click()
    tab.wait_for_url('**#cross_entropy')
    target = tab.locator('#cross_entropy')
    assert target.inner_text().strip().startswith('cross_entropy')
    tab.wait_for_function('() => { const r = document.getElementById("cross_entropy").getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight }')


def test_search_works_in_a_page_opened_from_a_folder(browser, site):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((site/'index.html').as_uri())
    assert search(tab, 'cross_entropy').get_attribute('href').endswith('#cross_entropy')
    context.close()


def background(tab):
    "How bright the page is, from 0 to 255"
    return sum(map(int, re.findall(r'\d+', tab.evaluate('getComputedStyle(document.body).backgroundColor'))[:3])) / 3


def test_dark_mode_can_be_chosen_and_is_remembered(tab, address):
    tab.goto(f'{address}index.html')
    assert background(tab) > 200
    tab.locator('.quarto-color-scheme-toggle').first.click()
    tab.wait_for_function('document.documentElement.classList.contains("quarto-dark")')
    assert background(tab) < 60
    tab.reload()
    assert background(tab) < 60
    tab.locator('.quarto-color-scheme-toggle').first.click()
    tab.wait_for_function('!document.documentElement.classList.contains("quarto-dark")')


def test_notebook_can_be_downloaded(tab, address, site):
    tab.goto(f'{address}index.html')
    with tab.expect_download() as d: tab.get_by_text('Run it yourself').click()
    assert d.value.suggested_filename == 'index.ipynb'


def test_names_lead_to_their_definition_and_to_the_code(tab, address):
    tab.goto(f'{address}classification/categorical.html')
    box = tab.locator('.api:has(#cross_entropy)')
    box.locator('.api-source').click()
    tab.wait_for_url('**#cross_entropy')
    assert 'def cross_entropy(' in tab.locator('#cross_entropy').inner_text()
