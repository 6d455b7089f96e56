"""Check a built site without a browser.

Every link and anchor resolves, every player has sound, nothing is loaded from elsewhere, and what is wide
scrolls where it stands.
"""
import base64
import io
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import soundfile

LOADED = {"script", "img", "audio", "source", "iframe", "link"}  # elements that fetch what they name
SCROLLS = {"pst-scrollable-table-container", "cell_output", "highlight", "wide"}  # the last: of the listening page
VOID = set("area base br col embed hr img input link meta source track wbr".split())


class Page(HTMLParser):
    "The `ids` of a page, `links` as (element, where to), `sources` of players, `wide` that does not scroll."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.sources, self.wide, self.open = set(), [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = {name: value for name, value in attrs if value}
        if tag not in VOID: self.open.append((tag, set(attrs.get("class", "").split())))
        scrolls = any(classes & SCROLLS for _, classes in self.open)
        if tag in ("table", "pre") and not scrolls: self.wide.append(tag)
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
        links = [attrs[name] for name in ("href", "src") if name in attrs]
        self.links += [(tag, link) for link in links if not link.startswith("data:")]
        if tag == "audio": self.sources.append(attrs.get("src"))
        if tag == "source" and self.sources and self.sources[-1] is None: self.sources[-1] = attrs.get("src")

    def handle_endtag(self, tag):
        if tag in [name for name, _ in self.open]:
            while self.open.pop()[0] != tag: pass


@cache
def page_at(path): return Page(path)


def duration(source, folder):
    "Seconds of a player's sound, from its data or its file."
    if not source.startswith("data:"): return soundfile.info(folder/unquote(urlsplit(source).path)).duration
    data = "".join(source.partition(",")[2].split())
    return soundfile.info(io.BytesIO(base64.b64decode(data))).duration


def link_problem(site, page, tag, link):
    "Why a link of a page leads nowhere, or None."
    parts = urlsplit(link)
    if link == "#": return None
    if parts.scheme or parts.netloc: return "is loaded from elsewhere" if tag in LOADED else None
    target = (page.parent/unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir(): target /= "index.html"
    if not target.is_relative_to(site) or not target.is_file(): return "does not exist"
    known = target.suffix != ".html" or not parts.fragment or unquote(parts.fragment) in page_at(target).ids
    return None if known else "has no such anchor"


def player_problem(source, folder, counted):
    "Why a player is silent, or None; its seconds are counted."
    try: seconds = duration(source or "", folder)
    except Exception as error: return f"cannot be read: {error}"
    counted["players"] += 1
    counted["seconds"] += seconds
    return None if seconds > 0 else "has no sound"


def check(site):
    "(pages, links, players and their seconds; problems, each with its page) of a folder of HTML."
    site, problems = Path(site).resolve(), []
    counted = {"pages": 0, "links": 0, "players": 0, "seconds": 0.}
    for path in sorted(path for path in site.rglob("*.html") if "_static" not in path.parts):
        page = page_at(path)
        why = [(link, link_problem(site, path, tag, link)) for tag, link in page.links]
        found = [f"{link[:100]} {problem}" for link, problem in why if problem]
        told = [player_problem(source, path.parent, counted) for source in page.sources]
        found += [f"player {number} {problem}" for number, problem in enumerate(told) if problem]
        found += [f"a {tag} does not scroll" for tag in page.wide]
        problems += [f"{path.relative_to(site)}: {problem}" for problem in found]
        counted["pages"] += 1
        counted["links"] += len(page.links)
    return counted, problems
