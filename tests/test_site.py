"""The site: how notebooks are staged, what its check finds, and its pages as a browser shows them."""
import base64
import importlib.util
import io
import json
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP/".ci"/"site"))
from check import check
from stage import chapters, stage

def missing(*names): return any(importlib.util.find_spec(name) is None for name in names)


built = pytest.mark.skipif(missing("sphinx", "myst_nb", "sphinx_book_theme"),
                           reason="no Sphinx here: make site installs it")
browser = pytest.mark.skipif(missing("PySide6") or missing("PySide6.QtWebEngineWidgets"),
                             reason="no browser here: pip install 'latentalign[browser]' brings one")
SETTINGS = """[DEFAULT]
user = someone
repo = house
branch = main
lib_path = house
title = house
author = Someone
copyright = Someone
version = 1
"""


def player(seconds):
    "A player whose sound is in the page, as IPython shows one."
    data = io.BytesIO()
    soundfile.write(data, np.zeros(int(8000 * seconds)), 8000, format="WAV")
    text = base64.b64encode(data.getvalue()).decode()
    return f'<audio controls src="data:audio/wav;base64,{text}"></audio>'


def write_notebook(path, prose, code=(), output=None):
    "A notebook of one cell of prose, and cells of code of which the last has an output in HTML."
    cells = [nbformat.v4.new_markdown_cell(prose), *map(nbformat.v4.new_code_cell, code)]
    data = {"text/html": output, "text/plain": "?"}
    if output: cells[-1].outputs = [nbformat.v4.new_output("display_data", data)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


RUN = """# To run

> It runs.

- skip_exec: true

See [the wave](1_one/10_wave.ipynb#what-it-is) and `[no](link.ipynb)`."""
WAVE = """# Wave

> Sound.

## What it is

A sum
$$x = \\sum_k a_k$$
of [sines](../2_two/10_sine.ipynb)."""
SINE = """# Sine

> One tone.

[numbers](../../data/x.csv), [folder](../../data), [front](../index.ipynb), [data](../../data/README.md),
[heard](../../figures/listening.html), <img src='../../figures/p.svg'>"""
FILES = {
    "settings.ini": SETTINGS, "README.md": "# House\n\n[run](nbs/run.ipynb)\n",
    "data/x.csv": "1", "data/README.md": "# Data\n\nNone.",
    "figures/p.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "figures/listening.html": "<p>heard</p>", "figures/results/results.md": "| a |\n| --- |\n| 1 |\n",
}


def make_house(top):
    "A repository of two chapters and one notebook to run."
    code = ["#| hide\nsecret = 1", "#| export\ndef wave(): pass", "play()"]
    output = player(.5) + '<table><tr><td><a href="#gone">excerpt</a></td></tr></table>'
    write_notebook(top/"nbs/index.ipynb", "# House")
    write_notebook(top/"nbs/run.ipynb", RUN)
    write_notebook(top/"nbs/1_one/10_wave.ipynb", WAVE, code, output)
    write_notebook(top/"nbs/2_two/10_sine.ipynb", SINE)
    for name, text in FILES.items():
        (top/name).parent.mkdir(parents=True, exist_ok=True)
        (top/name).write_text(text)
    return top


@pytest.fixture
def house(tmp_path):
    return make_house(tmp_path/"house")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site of such a repository."
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"SITE_OF": str(make_house(folder/"house"))}
    command = [sys.executable, TOP/".ci"/"site", folder/"site"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "1 players" in done.stdout, done.stdout + done.stderr
    return folder/"site"


def staged(folder, name):
    "The text of a page as it was staged; of a notebook, all its sources and outputs."
    text = (folder/name).read_text()
    if name.endswith(".md"): return text
    cells = json.loads(text)["cells"]
    return "\n".join(cell["source"] + json.dumps(cell.get("outputs", "")) for cell in cells)


def test_no_link_of_the_repository_is_dead(tmp_path):
    stage(TOP, tmp_path/"source")
    notebooks = list((tmp_path/"source").rglob("*.ipynb"))
    assert len(notebooks) == sum(map(len, chapters(TOP).values())) > 50


def test_chapters_are_found_in_order(house, tmp_path):
    write_notebook(house/"nbs/00_flat.ipynb", "# Flat")
    write_notebook(house/"nbs/.ipynb_checkpoints/run.ipynb", "# No")
    assert chapters(house) == {"": ["nbs/run.ipynb"], "1_one": ["nbs/1_one/10_wave.ipynb"],
                               "2_two": ["nbs/2_two/10_sine.ipynb"], "library": ["nbs/00_flat.ipynb"]}
    stage(house, tmp_path/"source")
    listed = staged(tmp_path/"source", "index.md").split("```")[1].split()[2:]
    assert listed == ["nbs/index", "nbs/1_one/index", "nbs/2_two/index", "nbs/library/index",
                      "figures/results/results", "about"]
    chapter = staged(tmp_path/"source", "nbs/1_one/index.md")
    assert chapter.startswith("# One\n\n* [Wave](10_wave.ipynb): Sound.")


def test_links_lead_to_pages_files_and_the_repository(house, tmp_path):
    assert stage(house, tmp_path/"source") == ["figures/listening.html", "figures/p.svg"]
    text = staged(tmp_path/"source", "nbs/2_two/10_sine.ipynb")
    assert "[numbers](https://github.com/someone/house/blob/main/data/x.csv)" in text
    assert "[folder](https://github.com/someone/house/tree/main/data)" in text
    assert "[front](../../index.md)" in text and "[data](../../data/README.md)" in text
    assert "[heard](file-of-site:../../figures/listening.html)" in text and "'../../figures/p.svg'" in text
    run = staged(tmp_path/"source", "nbs/run.ipynb")
    assert "(1_one/10_wave.ipynb#what-it-is)" in run
    assert "`[no](link.ipynb)`" in run, "what stands in code is no link"
    assert "file-of-site:../listening.html" in staged(tmp_path/"source", "figures/results/results.md")


def test_what_is_for_nbdev_and_servers_is_left_out(house, tmp_path):
    path, bar = house/"nbs/1_one/10_wave.ipynb", "application/vnd.jupyter.widget-view+json"
    nb = nbformat.read(path, 4)
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", {bar: {}, "text/plain": "bar"})]
    nbformat.write(nb, path)
    stage(house, tmp_path/"source")
    text = staged(tmp_path/"source", "nbs/1_one/10_wave.ipynb")
    assert "secret" not in text and "#|" not in text
    assert "widget" not in (tmp_path/"source/nbs/1_one/10_wave.ipynb").read_text()
    assert "skip_exec" not in staged(tmp_path/"source", "nbs/run.ipynb")
    assert "data:audio/wav" in text
    assert "href" not in text, "links of an excerpt to what it leaves out are taken off"
    assert "\n\n$$x = " in text, "a formula stands by itself"


@pytest.mark.parametrize("link, why", [
    ("11_none.ipynb", "no such file"), ("../../../outside.md", "no such file"),
    ("10_wave.ipynb#nowhere", "no such heading"), ("#nowhere", "no such heading")])
def test_a_dead_link_is_named(house, tmp_path, link, why):
    write_notebook(house/"nbs/1_one/20_late.ipynb", f"# Late\n\n[x]({link})")
    write_notebook(house/"nbs/1_one/30_later.ipynb", f'# Later\n\n<a href="{link}">x</a>')
    with pytest.raises(ValueError) as error: stage(house, tmp_path/"source")
    told = [f"nbs/1_one/{name}.ipynb: dead link {link} ({why})" for name in ("20_late", "30_later")]
    assert str(error.value).split("\n") == told


GOOD = f"""<p id="here"><a href="#here">x</a><a href="c.html">x</a><a href="https://example.org">x</a></p>
<div class="cell_output"><table></table></div>{player(1)}"""


@pytest.mark.parametrize("html, problem", [
    ('<a href="b.html">x</a>', "b.html does not exist"), ('<a href="#b">x</a>', "#b has no such anchor"),
    ('<a href="c.html#b">x</a>', "c.html#b has no such anchor"),
    ("<table></table>", "a table does not scroll"),
    ('<script src="https://example.org/x.js"></script>', "https://example.org/x.js is loaded from elsewhere"),
    ('<audio src="data:audio/wav;base64,AAAA"></audio>', "player 0 cannot be read"),
    (player(0), "player 0 has no sound")])
def test_check_names_what_is_wrong(tmp_path, html, problem):
    (tmp_path/"a.html").write_text(GOOD)
    (tmp_path/"c.html").write_text("<br>")
    assert check(tmp_path) == ({"pages": 2, "links": 3, "players": 1, "seconds": 1.}, [])
    (tmp_path/"d.html").write_text(html)
    told = check(tmp_path)[1]
    assert len(told) == 1 and told[0].startswith(f"d.html: {problem}")


def test_help_shows_what_parameters_mean():
    from latentalign import Autoencoder
    assert "full scale ±1" in pydoc.render_doc(Autoencoder.encode)
    assert "Parameters" in pydoc.render_doc(Autoencoder.from_pretrained)


@built
def test_site_is_built_from_a_folder_of_notebooks(site):
    page = (site/"nbs/1_one/10_wave.html").read_text()
    assert '<audio controls src="data:audio/wav' in page and 'href="../2_two/10_sine.html"' in page
    assert "tag_export" in page, "what the package is made of is marked"
    assert (site/"figures/listening.html").is_file()
    assert (site/"search.html").is_file() and "sine" in (site/"searchindex.js").read_text()


@built
@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_in_a_browser(site, width):
    command = [sys.executable, TOP/"tests"/"browser_site.py", site, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in map(json.loads, done.stdout.splitlines()):
        assert page["scroll"] <= page["inner"] and not page["wide"], page
        assert not page["broken"] and not page["requests"] and not page["waiting"], page
        assert page["durations"] == ([.5] if page["page"] == "nbs/1_one/10_wave.html" else [])
