"What must hold for every file of the site: links and anchors lead somewhere, ids are unique, nothing is loaded from outside"
import re
from html.parser import HTMLParser
from pathlib import PurePosixPath
from posixpath import join, normpath
from urllib.parse import unquote, urlsplit

OUTSIDE = re.compile(r'(https?:)?//', re.I)
CSS_URL = re.compile(r'@import\s+["\']([^"\']+)|url\(\s*["\']?([^"\')]+)', re.I)
LOADS = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'video': 'src', 'audio': 'src', 'embed': 'src', 'object': 'data'}
LOADING_RELS = {'stylesheet', 'icon', 'preload', 'modulepreload', 'preconnect', 'dns-prefetch', 'manifest'}


class PageReader(HTMLParser):
    "The ids, links and loaded files of a page"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.style = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        "Note what this tag names, links to and loads"
        a = dict(attrs)
        self.style = tag == 'style'
        if a.get('id'): self.ids.append(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if a.get(LOADS.get(tag)): self.loads.append(a[LOADS[tag]])
        if tag == 'link' and a.get('href'): (self.loads if LOADING_RELS & set(a.get('rel', '').split()) else self.links).append(a['href'])
        if a.get('style'): self.loads += css_urls(a['style'])

    def handle_data(self, data):
        "Note what an inline style sheet loads"
        if self.style: self.loads += css_urls(data)


def css_urls(text):
    "What a style sheet loads"
    return [a or b for a, b in CSS_URL.findall(text)]


def target(page, href):
    "Where `href` on `page` leads: the path from the root of the site, and the anchor"
    url = urlsplit(href)
    path = normpath(join(str(PurePosixPath(page).parent), unquote(url.path))) if url.path else page
    return (f'{path}/index.html' if url.path.endswith('/') else path), unquote(url.fragment)


def bad_links(name, page, pages, files):
    "The links of the page `name` that lead nowhere"
    for href in page.links:
        if urlsplit(href).scheme or href.startswith('//'): continue
        path, anchor = target(name, href)
        if path not in files: yield f'{name}: the link {href} leads to no file'
        elif anchor and path in pages and anchor not in pages[path].ids: yield f'{name}: the link {href} names no anchor of {path}'


def bad_loads(name, urls, files):
    "What the file `name` loads from outside the site, or that is not there"
    for url in urls:
        if url.startswith(('data:', '#')): continue
        if OUTSIDE.match(url): yield f'{name}: loads {url} from outside the site'
        elif target(name, url)[0] not in files: yield f'{name}: loads {url}, which is not there'


def repeated(name, ids):
    "The ids that stand twice on the page `name`, but for those of drawings"
    return [f'{name}: two elements have the id {i}' for i in sorted({i for i in ids if ids.count(i) > 1})]


def problems(site):
    "Every problem of the site in the folder `site`, as sentences"
    files = {p.relative_to(site).as_posix() for p in site.rglob('*') if p.is_file()}
    pages = {f: PageReader((site/f).read_text(encoding='utf-8')) for f in sorted(files) if f.endswith('.html')}
    found = []
    for name, page in pages.items():
        found += [*bad_links(name, page, pages, files), *bad_loads(name, page.loads, files), *repeated(name, page.ids)]
    for name in sorted(f for f in files if f.endswith('.css')):
        found += bad_loads(name, css_urls((site/name).read_text(encoding='utf-8')), files)
    return found
