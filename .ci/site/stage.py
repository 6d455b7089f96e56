"""Stage the repository for Sphinx, without needing it: README, notebooks, and the pages that they link to.

The folder mirrors the repository, so that relative links stay what they are; every link is checked, and one
to a file that is no page becomes a copy of that file or a link to the repository. What is staged is found:
the notebooks at the top of `nbs` are what people run, each folder below it is a chapter.
"""
import json
import os
import re
import shutil
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from urllib.parse import unquote

PAGES, PICTURES = {".ipynb", ".md"}, {".png", ".svg", ".jpg", ".jpeg", ".gif"}
SERVED = PICTURES | {".html", ".wav", ".mp3", ".ogg", ".flac", ".pdf"}  # copied as they are
FRONT = {"README.md": "index.md", "nbs/index.ipynb": "index.md"}
RESULTS = "figures/results/results.md"
FACES = ["Autoencoder", "Surprisal", "ExpectationModel", "read_audio", "write_audio", "read_melody",
         "corpus_melodies", "open_source", "evaluate"]

# in Markdown
FENCE = r"(?ms:^(?P<fence>```|~~~).*?^(?P=fence))"
SPAN = r"(?s:(?P<tick>`+)(?:(?!\n\s*\n).)+?(?<!`)(?P=tick)(?!`))"
LINK = re.compile(rf"{FENCE}|{SPAN}"
                  r"|(?P<before>\]\(\s*<?)(?P<link>[^\s()<>]+)(?=[^()\n]*\))"
                  r"""|(?P<html>\b(?:href|src)=(?P<quote>["']))(?P<source>.*?)(?P=quote)""")
FORMULA = re.compile(r"^(\$\$.+?\$\$)[ \t]*$", re.M | re.S)  # on lines of its own
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.M)
ANCHOR = re.compile(r"""\b(?:id|name)=["']([^"']+)["']|^\(([\w:.-]+)\)=""", re.M)
INNER = re.compile(r' href="#([^"]*)"')
# in notebooks of nbdev
FRONTMATTER = re.compile(r"^- [a-z_]+: .*\n?", re.M)  # in the first cell
MARK, EXPORT = re.compile(r"^#\s*\|.*\n?", re.M), re.compile(r"^#\s*\|\s*exporti?\b", re.M)
HIDE = re.compile(r"^#\s*\|\s*(hide|default_exp)\b(?!_)", re.M)


def settings(top):
    "What settings.ini says, with nbdev's default of `git_url`."
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(top/"settings.ini", encoding="utf-8")
    cfg = dict(ini["DEFAULT"])
    return {"git_url": f"https://github.com/{cfg['user']}/{cfg['repo']}"} | cfg


def slug(heading):
    "The anchor of a heading, as code hosts and MyST make it."
    text = re.sub(r"\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def chapters(top):
    "{folder: its notebooks}; '' is what people run, 'library' what is numbered and lies in no folder."
    found = {"": []}
    for path in sorted((top/"nbs").rglob("*.ipynb")):
        parts = path.relative_to(top/"nbs").parts
        if any(part[0] in "._" for part in parts) or path.name == "index.ipynb": continue
        folder = parts[0] if len(parts) > 1 else "library" if path.name[0].isdigit() else ""
        found.setdefault(folder, []).append(path.relative_to(top).as_posix())
    return dict(sorted(found.items()))


def faces(top, names=FACES):
    "{name: (module, its file, class or function)} of what the package defines under these names."
    found, definition = {}, re.compile(rf"^(class|def) ({'|'.join(names)})\b", re.M)
    for path in sorted((top/settings(top)["lib_path"]).rglob("*.py")):
        for kind, name in definition.findall(path.read_text(encoding="utf-8")):
            module = ".".join(path.relative_to(top).with_suffix("").parts)
            found[name] = module, path, "class" if kind == "class" else "function"
    return {name: found[name] for name in names if name in found}


@cache
def read_cells(path):
    "The cells of a notebook that are shown, as (kind, source, outputs); a text is one cell of prose."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return [("markdown", text, [])]
    cells = json.loads(text)["cells"]
    found = [(cell["cell_type"], "".join(cell["source"]), cell.get("outputs", [])) for cell in cells]
    return [cell for cell in found if cell[0] != "code" or not HIDE.search(cell[1])]


def title_and_summary(path):
    "The first heading of a notebook, and the quoted line below it."
    first = next((source for kind, source, _ in read_cells(path) if kind == "markdown"), "")
    title, summary = re.search(r"^# (.+)", first, re.M), re.search(r"^> (.+)", first, re.M)
    return title[1].strip() if title else path.stem, summary[1].strip() if summary else ""


def marked_up(output):
    "The (data, kind) of each marked-up text of an output."
    data = output.get("data", {})
    return [(data, kind) for kind in ("text/html", "text/markdown") if kind in data]


@cache
def anchors(path):
    "All that a link into this page may name."
    cells = read_cells(path)
    prose = "\n".join(source for kind, source, _ in cells if kind == "markdown")
    outputs = [output for *_, outputs in cells for output in outputs]
    shown = ["".join(data[kind]) for output in outputs for data, kind in marked_up(output)]
    headings = {slug(found[1]) for found in HEADING.finditer(re.sub(FENCE, "", prose))}
    return headings | {found[1] or found[2] for found in ANCHOR.finditer("\n".join([prose, *shown]))}


def toctree(pages, name):
    "A hidden table of contents for the page `name`."
    folder = os.path.dirname(name) or "."
    entries = [re.sub(r"\.(md|ipynb)$", "", os.path.relpath(page, folder)) for page in pages]
    return "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n" if entries else "\n"


class Stage:
    "A folder in the making: `pages` staged so far, `files` to copy, `problems`: links that lead nowhere."

    def __init__(self, top, out):
        self.top, self.out, self.cfg = Path(top).resolve(), Path(out), settings(Path(top))
        self.pages, self.files, self.problems = set(), set(), []

    def rewrite(self, text, page):
        "The text with its links as they are on the site; `page` is where it stands in the repository."
        def replace(found):
            if found["before"]: return found["before"] + self.link(found["link"], page)
            if not found["html"]: return found[0]
            return found["html"] + self.link(found["source"], page, html=True) + found["quote"]
        return LINK.sub(replace, text)

    def link(self, link, page, html=False):
        "One link as it is on the site, which is noted as a problem if it leads nowhere."
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.I): return link
        name, _, anchor = link.partition("#")
        here = self.top/page
        target = Path(os.path.normpath(here.parent/unquote(name))) if name else here
        there = target.is_relative_to(self.top) and target.exists()
        if not there: return self.dead(link, page, "no such file")
        inside = target.relative_to(self.top).as_posix()
        if target.suffix in PAGES: return self.page_link(link, page, inside, anchor, html)
        if target.suffix in SERVED:
            self.files.add(inside)
            return link if html or target.suffix in PICTURES else f"file-of-site:{link}"
        kind = "tree" if target.is_dir() else "blob"
        return f"{self.cfg['git_url']}/{kind}/{self.cfg['branch']}/{inside}" + (anchor and f"#{anchor}")

    def page_link(self, link, page, target, anchor, html):
        "A link to another page, which is staged for it, or within this one."
        known = anchors(self.top/target)
        if anchor not in known: anchor = slug(anchor)
        if anchor and anchor not in known: return self.dead(link, page, "no such heading")
        folder = os.path.dirname(FRONT.get(page, page)) or "."
        to = "" if link[0] == "#" else os.path.relpath(self.add(target), folder)
        return (re.sub(r"\.(md|ipynb)$", ".html", to) if html else to) + (anchor and f"#{anchor}")

    def dead(self, link, page, why):
        self.problems.append(f"{page}: dead link {link} ({why})")
        return link

    def add(self, page):
        "Stage a page and what it links to, once; returns where it lies in the folder."
        page = "README.md" if page in FRONT else page
        if page not in self.pages:
            self.pages.add(page)
            self.write(FRONT.get(page, page), (self.notebook if page.endswith(".ipynb") else self.text)(page))
        return FRONT.get(page, page)

    def write(self, name, text):
        (self.out/name).parent.mkdir(parents=True, exist_ok=True)
        (self.out/name).write_text(text, encoding="utf-8")

    def read(self, name): return (self.out/name).read_text(encoding="utf-8")

    def text(self, page):
        text = self.rewrite((self.top/page).read_text(encoding="utf-8"), page)
        return text if re.match(r"\s*# ", text) else f"# {Path(page).stem.capitalize()}\n\n{text}"

    def notebook(self, page):
        "A notebook without what is for nbdev, and without widgets, which need a server."
        nb = json.loads((self.top/page).read_text(encoding="utf-8"))
        language = {"name": "python", "pygments_lexer": "ipython3"}
        nb["metadata"] = {"kernelspec": nb["metadata"].get("kernelspec", {}), "language_info": language}
        for cell in nb["cells"]: cell["source"] = "".join(cell["source"])
        nb["cells"][0]["source"] = FRONTMATTER.sub("", nb["cells"][0]["source"])
        hidden = [cell["cell_type"] == "code" and HIDE.search(cell["source"]) for cell in nb["cells"]]
        nb["cells"] = [cell for cell, hide in zip(nb["cells"], hidden) if not hide]
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = FORMULA.sub(r"\n\1\n", self.rewrite(cell["source"], page))
            if cell["cell_type"] == "code": self.code_cell(cell, page)
        return json.dumps(nb)

    def code_cell(self, cell, page):
        "A cell of code, in place. An output may be an excerpt: links to what it leaves out are taken off."
        if EXPORT.search(cell["source"]): cell["metadata"].setdefault("tags", []).append("export")
        cell["source"] = MARK.sub("", cell["source"]).strip()
        widgets = ["jupyter.widget" in " ".join(output.get("data", {})) for output in cell["outputs"]]
        cell["outputs"] = [output for output, widget in zip(cell["outputs"], widgets) if not widget]
        known = anchors(self.top/page)
        for data, kind in (text for output in cell["outputs"] for text in marked_up(output)):
            excerpt = INNER.sub(lambda found: found[0] if found[1] in known else "", "".join(data[kind]))
            data[kind] = self.rewrite(excerpt, page)

    def chapter(self, folder, notebooks):
        "The page of a chapter, which lists its notebooks; returns its name."
        name = f"nbs/{folder}/index".replace("//", "/")
        title, rows = re.sub(r"^\d+_", "", folder).replace("_", " ").capitalize() or "Run", []
        for path in notebooks:
            heading, summary = title_and_summary(self.top/path)
            row = f"* [{heading}]({os.path.relpath(path, os.path.dirname(name))})"
            rows.append(row + (f": {self.rewrite(summary, path)}" if summary else ""))
        self.write(f"{name}.md", f"# {title}\n\n" + "\n".join(rows) + toctree(notebooks, name))
        return name

    def results(self):
        "The page of results, which links other tables and what is heard; returns its name, if there are any."
        if not (self.top/RESULTS).is_file(): return []
        folder = os.path.dirname(RESULTS)
        paths = [f"{folder}/{path.name}" for path in sorted((self.top/folder).glob("*.md"))]
        heard = sorted(path.name for path in (self.top/"figures").glob("listening*.html"))
        self.files |= {f"figures/{name}" for name in heard}
        name, others = self.add(RESULTS), [self.add(path) for path in paths if path != RESULTS]
        links = [f"* [Models side by side: {Path(page).stem}](file-of-site:../{page})" for page in heard]
        title, rest = self.read(name).split("\n", 1)
        self.write(name, "\n".join([title, "", *links, rest]) + toctree(others, name))
        return [name]

    def reference(self):
        "The page of the faces and the notebooks that define them; returns its name, if there is a package."
        parts = []
        for face, (module, path, kind) in faces(self.top).items():
            source = re.search(r"File to edit: (?:\.\./)*(\S+\.ipynb)", path.read_text(encoding="utf-8"))
            door = f", from [{title_and_summary(self.top/source[1])[0]}]({source[1]})" if source else ""
            directive = f"```{{eval-rst}}\n.. auto{kind}:: {module}.{face}\n```\n"
            parts.append(f"## {face}\n\n`{module}`{door}\n\n{directive}")
        intro = "# Reference\n\nWhat most people need of the package.\n\n"
        if parts: self.write("reference.md", intro + "\n".join(parts))
        return ["reference"] if parts else []

    def about(self):
        "The page of all other texts; returns its name, if there are any."
        for path in sorted(self.top.glob("*.md")): self.add(path.name)
        done = tuple(FRONT) + (os.path.dirname(RESULTS),)
        pages = sorted(page for page in self.pages if page.endswith(".md") and not page.startswith(done))
        titles = [re.search("^# (.+)", self.read(page), re.M)[1] for page in pages]
        rows = [f"* [{title}]({page}): `{page}`" for title, page in zip(titles, pages)]
        if pages: self.write("about.md", "# About\n\n" + "\n".join(rows) + toctree(pages, "about"))
        return ["about"] if pages else []


def stage(top, out):
    "Write the folder; returns the files to be copied beside it; raises `ValueError` naming every dead link."
    shutil.rmtree(out, ignore_errors=True)
    site, parts = Stage(top, out), chapters(Path(top))
    front = site.add("README.md")
    for path in (path for notebooks in parts.values() for path in notebooks): site.add(path)
    listed = [site.chapter(folder, notebooks) for folder, notebooks in parts.items() if notebooks]
    listed += site.results() + site.reference() + site.about()
    site.write(front, site.read(front) + toctree(listed, front))
    if site.problems: raise ValueError("\n".join(site.problems))
    for name in site.files:
        (site.out/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.top/name, site.out/name)
    return sorted(site.files)
