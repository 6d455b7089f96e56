"""Stage the repository as a source folder for Sphinx: README, notebooks, and the pages that they link to. Needs no Sphinx.

The folder mirrors the repository, so that relative links stay what they are; every link is checked, and one to a file that is
no page becomes a copy of that file or a link to the repository. What is staged is found: the notebooks at the top of `nbs` are
what people run, each folder below it is a chapter.
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
FACES = ["Autoencoder", "Surprisal", "ExpectationModel", "read_audio", "write_audio", "read_melody", "corpus_melodies",
         "open_source", "evaluate"]
CODE = r"(?ms:^(?P<fence>```|~~~).*?^(?P=fence)|(?P<tick>`+)(?:(?!\n\s*\n).)+?(?<!`)(?P=tick)(?!`))"
LINK = re.compile(CODE + r"""|(?P<md>\]\(\s*)<?(?P<to>[^\s()<>]+)>?(?=[^()\n]*\))|(?P<html>\b(?:href|src)=)(?P<q>["'])(?P<at>.*?)(?P=q)""")
FORMULA = re.compile(r"^(\$\$.+?\$\$)[ \t]*$", re.M | re.S)  # on lines of its own
HEADING, ANCHOR = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.M), re.compile(r"""\b(?:id|name)=["']([^"']+)["']|^\(([\w:.-]+)\)=""", re.M)
FRONTMATTER = re.compile(r"^- [a-z_]+: .*\n?", re.M)  # of nbdev, in the first cell
MARK, HIDE = re.compile(r"^#\s*\|.*\n?", re.M), re.compile(r"^#\s*\|\s*(hide|default_exp)\b(?!_)", re.M)


def settings(top):
    "What settings.ini says, with nbdev's default of `git_url`."
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(top/"settings.ini", encoding="utf-8")
    cfg = dict(ini["DEFAULT"])
    return {"git_url": f"https://github.com/{cfg['user']}/{cfg['repo']}"} | cfg


def slug(heading):
    "The anchor of a heading, as code hosts and MyST make it."
    return re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).strip().lower()).replace(" ", "-")


def chapters(top):
    "{folder below nbs: its notebooks, sorted by path}; '' holds what people run, 'library' the numbered notebooks that lie in no folder."
    found = {"": []}
    for path in sorted((top/"nbs").rglob("*.ipynb")):
        inside = path.relative_to(top/"nbs")
        if any(part[0] in "._" for part in inside.parts) or inside.name == "index.ipynb": continue
        folder = inside.parts[0] if len(inside.parts) > 1 else "library" if inside.name[0].isdigit() else ""
        found.setdefault(folder, []).append(f"nbs/{inside.as_posix()}")
    return {folder: found[folder] for folder in sorted(found)}


def chapter_title(folder): return re.sub(r"^\d+_", "", folder).replace("_", " ").capitalize() or "Run"


@cache
def read_cells(path):
    "The cells of a notebook that are shown, as (kind, source, outputs); a text is one cell of prose."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return [("markdown", text, [])]
    cells = [(cell["cell_type"], "".join(cell["source"]), cell.get("outputs", [])) for cell in json.loads(text)["cells"]]
    return [cell for cell in cells if cell[0] == "markdown" or cell[0] == "code" and not HIDE.search(cell[1])]


def title_and_summary(path):
    "Of a notebook: its first heading, and the quoted line below it."
    first = next((source for kind, source, _ in read_cells(path) if kind == "markdown"), "")
    title, summary = re.search(r"^# (.+)", first, re.M), re.search(r"^> (.+)", first, re.M)
    return title[1].strip() if title else path.stem, summary[1].strip() if summary else ""


def texts(output):
    "The (place, key) of each marked-up text of an output."
    return [(output["data"], kind) for kind in ("text/html", "text/markdown") if kind in output.get("data", {})]


@cache
def anchors(path):
    "All that a link into this page may name."
    parts = [(kind, source) for kind, source, _ in read_cells(path) if kind == "markdown"]
    parts += [("", "".join(data[kind])) for _, _, outputs in read_cells(path) for output in outputs for data, kind in texts(output)]
    prose = "\n".join(re.sub(CODE.replace("(?P<tick>", "(?P<tick>(?!)"), "", source) for kind, source in parts if kind)
    return {slug(m[1]) for m in HEADING.finditer(prose)} | {m[1] or m[2] for _, source in parts for m in ANCHOR.finditer(source)}


def faces(top, names=FACES):
    "{name: (module, its file, class or function)} of what the package defines under these names."
    found = {}
    for path in sorted((top/settings(top)["lib_path"]).rglob("*.py")):
        for kind, name in re.findall(rf"^(class|def) ({'|'.join(names)})\b", path.read_text(encoding="utf-8"), re.M):
            found[name] = ".".join(path.relative_to(top).with_suffix("").parts), path, "class" if kind == "class" else "function"
    return {name: found[name] for name in names if name in found}


class Stage:
    "A source folder in the making: `pages` maps paths of the repository to those in the folder, `problems` are links that lead nowhere."

    def __init__(self, top, out):
        self.top, self.out, self.cfg = Path(top).resolve(), Path(out), settings(Path(top))
        self.pages, self.files, self.problems = {}, set(), []

    def rewrite(self, text, page):
        "The text with its links as they are on the site; `page` is where it stands in the repository."
        def replace(found):
            if found["md"]: return found["md"] + self.link(found["to"], page, html=False)
            if found["html"]: return found["html"] + found["q"] + self.link(found["at"], page, html=True) + found["q"]
            return found[0]
        return LINK.sub(replace, text)

    def link(self, link, page, html):
        "One link of a page as it is on the site, which is noted as a problem if it leads nowhere."
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.I): return link
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(self.top/page.rpartition("/")[0]/unquote(name))) if name else self.top/page
        inside = target.relative_to(self.top).as_posix() if target.is_relative_to(self.top) else None
        if inside is None or not target.exists(): return self.dead(link, page, "no such file")
        if target.suffix in PAGES and target.is_file():
            if anchor and anchor not in anchors(target) and (anchor := slug(anchor)) not in anchors(target):
                return self.dead(link, page, "no such heading")
            staged, here = self.add(inside), FRONT.get(page, page)
            to = os.path.relpath(staged, os.path.dirname(here) or ".") if name else ""
            return (re.sub(r"\.(md|ipynb)$", ".html", to) if html else to) + (anchor and f"#{anchor}")
        if target.suffix in SERVED:
            self.files.add(inside)
            return link if html or target.suffix in PICTURES else f"file-of-site:{link}"
        return f"{self.cfg['git_url']}/{'tree' if target.is_dir() else 'blob'}/{self.cfg['branch']}/{inside}" + (anchor and f"#{anchor}")

    def dead(self, link, page, why):
        self.problems.append(f"{page}: dead link {link} ({why})")
        return link

    def add(self, page):
        "Stage a page and what it links to, once; returns where it lies in the folder."
        page = "README.md" if page in FRONT else page
        if page not in self.pages:
            self.pages[page] = FRONT.get(page, page)
            self.write(self.pages[page], (self.notebook if page.endswith(".ipynb") else self.text)(page))
        return self.pages[page]

    def write(self, name, text):
        (self.out/name).parent.mkdir(parents=True, exist_ok=True)
        (self.out/name).write_text(text, encoding="utf-8")

    def text(self, page):
        text = self.rewrite((self.top/page).read_text(encoding="utf-8"), page)
        return text if re.match(r"\s*# ", text) else f"# {Path(page).stem.capitalize()}\n\n{text}"

    def notebook(self, page):
        "A notebook without hidden cells, directives and widgets, which need a server."
        nb = json.loads((self.top/page).read_text(encoding="utf-8"))
        nb["metadata"] = {"kernelspec": nb["metadata"].get("kernelspec", {}), "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nb["cells"][0]["source"] = FRONTMATTER.sub("", "".join(nb["cells"][0]["source"]))
        nb["cells"] = [cell for cell in nb["cells"] if cell["cell_type"] != "code" or not HIDE.search("".join(cell["source"]))]
        for cell in nb["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown": cell["source"] = FORMULA.sub(r"\n\1\n", self.rewrite(source, page))
            if cell["cell_type"] == "code": self.code_cell(cell, source, page)
        return json.dumps(nb)

    def code_cell(self, cell, source, page):
        "A cell of code, in place. An output may be an excerpt of a page: links to what it leaves out are taken off."
        if re.search(r"^#\s*\|\s*exporti?\b", source, re.M): cell["metadata"].setdefault("tags", []).append("export")
        cell["source"] = MARK.sub("", source).strip()
        cell["outputs"] = [output for output in cell["outputs"] if not any("jupyter.widget" in kind for kind in output.get("data", {}))]
        known = anchors(self.top/page)
        for data, kind in (place for output in cell["outputs"] for place in texts(output)):
            excerpt = re.sub(r' href="#([^"]*)"', lambda found: found[0] if found[1] in known else "", "".join(data[kind]))
            data[kind] = self.rewrite(excerpt, page)

    def chapter(self, folder, notebooks):
        "The page of a chapter, which lists its notebooks; returns its name."
        name, rows = f"nbs/{folder}/index".replace("//", "/"), []
        for path in notebooks:
            title, summary = title_and_summary(self.top/path)
            rows.append(f"* [{title}]({os.path.relpath(path, os.path.dirname(name))})" + (f": {self.rewrite(summary, path)}" if summary else ""))
        self.write(f"{name}.md", f"# {chapter_title(folder)}\n\n" + "\n".join(rows) + toctree(notebooks, name))
        return name

    def results(self):
        "The page of results, which leads to the other tables and to what can be heard; returns its name, or nothing where there are none."
        if not (self.top/RESULTS).is_file(): return []
        name = self.add(RESULTS)
        tables = [self.add(path.relative_to(self.top).as_posix()) for path in sorted((self.top/RESULTS).parent.glob("*.md"))]
        heard = sorted((self.top/"figures").glob("listening*.html"))
        self.files |= {path.relative_to(self.top).as_posix() for path in heard}
        links = [f"* [{path.stem.replace('_', ' ').capitalize()}](file-of-site:../{path.name}): models heard side by side" for path in heard]
        text = (self.out/name).read_text(encoding="utf-8")
        title, rest = text.split("\n", 1)
        self.write(name, "\n".join([title, "", *links, rest]) + toctree([table for table in tables if table != name], name))
        return [name]

    def reference(self):
        "The page of the faces, each found where it is defined; returns its name, or nothing where there is no package."
        parts = []
        for face, (module, path, kind) in faces(self.top).items():
            source = re.search(r"File to edit: (?:\.\./)*(\S+\.ipynb)", path.read_text(encoding="utf-8"))
            door = f", from [{title_and_summary(self.top/source[1])[0]}]({source[1]})" if source else ""
            parts.append(f"## {face}\n\n`{module}`{door}\n\n```{{eval-rst}}\n.. auto{kind}:: {module}.{face}\n```\n")
        if parts: self.write("reference.md", "# Reference\n\nWhat most people need of the package.\n\n" + "\n".join(parts))
        return ["reference"] if parts else []

    def about(self):
        "The page of all other texts; returns its name."
        for path in sorted(self.top.glob("*.md")): self.add(path.name)
        other = sorted(page for page in self.pages if page.endswith(".md") and page not in FRONT and not page.startswith("figures/results/"))
        if not other: return []
        rows = [f"* [{re.search('^# (.+)', (self.out/page).read_text(encoding='utf-8'), re.M)[1]}]({page}): `{page}`" for page in other]
        self.write("about.md", "# About\n\n" + "\n".join(rows) + toctree(other, "about"))
        return ["about"]


def toctree(pages, name):
    "A hidden table of contents for the page `name`."
    entries = [re.sub(r"\.(md|ipynb)$", "", os.path.relpath(page, os.path.dirname(name) or ".")) for page in pages]
    return "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n" if entries else "\n"


def stage(top, out):
    "Write a source folder for Sphinx anew; returns the files that are copied beside its pages, and raises `ValueError` naming every dead link."
    shutil.rmtree(out, ignore_errors=True)
    site, parts = Stage(top, out), chapters(Path(top))
    front = site.add("README.md")
    for notebooks in parts.values():
        for path in notebooks: site.add(path)
    listed = [site.chapter(folder, notebooks) for folder, notebooks in parts.items() if notebooks]
    listed += site.results() + site.reference() + site.about()
    site.write(front, (site.out/front).read_text(encoding="utf-8") + toctree(listed, front))
    if site.problems: raise ValueError("\n".join(site.problems))
    for name in site.files:
        (site.out/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.top/name, site.out/name)
    return sorted(site.files)
