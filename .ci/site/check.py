"""Check a built site without a browser: every link and anchor resolves, every player has sound, nothing is loaded from elsewhere,
and what is wide scrolls where it stands."""
import base64
import io
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import soundfile

LOADED = {("script", "src"), ("img", "src"), ("audio", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}

SCROLLS = {"pst-scrollable-table-container", "cell_output", "highlight"}  # classes that scroll by the style sheets
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    "What a page holds: `ids`, `links` as (tag, attribute, where to), the `sources` of its players, and what is `wide` and scrolls nowhere."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.sources, self.wide, self.open = set(), [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID: self.open.append((tag, set((attrs.get("class") or "").split())))
        if tag in ("table", "pre") and not any(classes & SCROLLS for _, classes in self.open): self.wide.append(tag)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.links += [(tag, name, attrs[name]) for name in ("href", "src") if attrs.get(name) and not attrs[name].startswith("data:")]
        if tag == "audio": self.sources.append(attrs.get("src"))
        if tag == "source" and self.sources and self.sources[-1] is None: self.sources[-1] = attrs.get("src")

    def handle_endtag(self, tag):
        while self.open and tag in [name for name, _ in self.open] and self.open.pop()[0] != tag: pass


@cache
def page_at(path): return Page(path)


def duration(source, folder):
    "Seconds of a player's sound, from its data or its file."
    if source.startswith("data:"): data = io.BytesIO(base64.b64decode(re.sub(r"\s", "", source.partition(",")[2])))
    else: data = folder/unquote(urlsplit(source).path)
    return soundfile.info(data).duration


def link_problem(site, page, tag, name, link):
    "Why a link of a page leads nowhere, or None."
    parts = urlsplit(link)
    if link == "#": return None
    if parts.scheme or parts.netloc: return "is loaded from elsewhere" if (tag, name) in LOADED else None
    target = page if not parts.path else (page.parent/unquote(parts.path)).resolve()
    target = target/"index.html" if target.is_dir() else target
    if not target.is_relative_to(site) or not target.is_file(): return "does not exist"
    known = target.suffix != ".html" or not parts.fragment or unquote(parts.fragment) in page_at(target).ids
    return None if known else "has no such anchor"


def check(site):
    "(what was counted, problems): pages, links and players of a folder of HTML; each problem names its page."
    site, counted, problems = Path(site).resolve(), {"pages": 0, "links": 0, "players": 0, "seconds": 0.}, []
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts: continue
        page, name = page_at(path), path.relative_to(site)
        counted["pages"] += 1
        for link in page.links:
            counted["links"] += 1
            if problem := link_problem(site, path, *link): problems.append(f"{name}: {link[2][:100]} {problem}")
        problems += [f"{name}: a {tag} does not scroll" for tag in page.wide]
        for number, source in enumerate(page.sources):
            counted["players"] += 1
            try: seconds = duration(source or "", path.parent)
            except Exception as error: problems.append(f"{name}: player {number} cannot be read: {error}"); continue
            counted["seconds"] += seconds
            if seconds <= 0: problems.append(f"{name}: player {number} has no sound")
    return counted, problems
