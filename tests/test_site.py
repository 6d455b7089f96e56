"""The site: how notebooks are staged and links rewritten, what its check finds, and pages as a browser shows them."""
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

built = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb", "sphinx_book_theme")),
                           reason="no Sphinx here: make site installs it")
browser = pytest.mark.skipif(importlib.util.find_spec("PySide6") is None or importlib.util.find_spec("PySide6.QtWebEngineWidgets") is None,
                             reason="no browser here: pip install 'latentalign[browser]' brings Qt's Chromium")
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
    return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(data.getvalue()).decode()}"></audio>'


def write_notebook(path, prose, code=(), output=None):
    "A notebook of one cell of prose, and cells of code of which the last has an output in HTML."
    cells = [nbformat.v4.new_markdown_cell(prose), *map(nbformat.v4.new_code_cell, code)]
    if output: cells[-1].outputs = [nbformat.v4.new_output("display_data", {"text/html": output, "text/plain": "?"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def make_house(top):
    "A repository of two chapters and one notebook to run."
    write_notebook(top/"nbs/run.ipynb", "# To run\n\n> It runs.\n\n- skip_exec: true\n\nSee [the wave](1_one/10_wave.ipynb#what-it-is) and `[no](link.ipynb)`.")
    write_notebook(top/"nbs/index.ipynb", "# House")
    write_notebook(top/"nbs/1_one/10_wave.ipynb", "# Wave\n\n> Sound.\n\n## What it is\n\nA sum\n$$x = \\sum_k a_k$$\nof [sines](../2_two/10_sine.ipynb).",
                   ["#| hide\nsecret = 1", "#| export\ndef wave(): pass", "play()"], player(.5) + '<table><tr><td><a href="#gone">excerpt</a></td></tr></table>')
    write_notebook(top/"nbs/2_two/10_sine.ipynb", "# Sine\n\n> One tone.\n\n[numbers](../../data/x.csv), [folder](../../data), [front](../index.ipynb), "
                   "[heard](../../figures/listening.html), <img src='../../figures/p.png'>, [data](../../data/README.md)")
    for name, text in {"settings.ini": SETTINGS, "README.md": "# House\n\n[run](nbs/run.ipynb)\n", "data/x.csv": "1", "data/README.md": "# Data\n\nNone.",
                       "figures/listening.html": "<p>heard</p>", "figures/results/results.md": "| a |\n| --- |\n| 1 |\n"}.items():
        (top/name).parent.mkdir(parents=True, exist_ok=True)
        (top/name).write_text(text)
    (top/"figures/p.png").write_bytes(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))
    return top


@pytest.fixture
def house(tmp_path):
    return make_house(tmp_path/"house")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site of such a repository."
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, TOP/".ci"/"site", folder/"site"], env=os.environ | {"SITE_OF": str(make_house(folder/"house"))},
                          capture_output=True, text=True)
    assert done.returncode == 0 and "1 players" in done.stdout, done.stdout + done.stderr
    return folder/"site"


def staged(folder, name):
    "The text of a page as it was staged; of a notebook, all its sources and outputs."
    text = (folder/name).read_text()
    return text if name.endswith(".md") else "\n".join(str(cell["source"]) + json.dumps(cell.get("outputs", "")) for cell in json.loads(text)["cells"])


def test_no_link_of_the_repository_is_dead(tmp_path):
    stage(TOP, tmp_path/"source")
    assert len(list((tmp_path/"source").rglob("*.ipynb"))) == sum(map(len, chapters(TOP).values())) > 50


def test_chapters_are_found_in_order(house, tmp_path):
    assert chapters(house) == {"": ["nbs/run.ipynb"], "1_one": ["nbs/1_one/10_wave.ipynb"], "2_two": ["nbs/2_two/10_sine.ipynb"]}
    write_notebook(house/"nbs/00_flat.ipynb", "# Flat")
    write_notebook(house/"nbs/.ipynb_checkpoints/run.ipynb", "# No")
    assert chapters(house)["library"] == ["nbs/00_flat.ipynb"] and len(chapters(house)) == 4
    stage(house, tmp_path/"source")
    order = staged(tmp_path/"source", "index.md").split("```")[1].split()[2:]
    assert order == ["nbs/index", "nbs/1_one/index", "nbs/2_two/index", "nbs/library/index", "figures/results/results", "about"]
    assert staged(tmp_path/"source", "nbs/1_one/index.md").startswith("# One\n\n* [Wave](10_wave.ipynb): Sound.")


def test_links_lead_to_pages_files_and_the_repository(house, tmp_path):
    assert stage(house, tmp_path/"source") == ["figures/listening.html", "figures/p.png"]
    text = staged(tmp_path/"source", "nbs/2_two/10_sine.ipynb")
    for link in ("[numbers](https://github.com/someone/house/blob/main/data/x.csv)", "[folder](https://github.com/someone/house/tree/main/data)",
                 "[front](../../index.md)", "[heard](file-of-site:../../figures/listening.html)", "<img src='../../figures/p.png'>", "[data](../../data/README.md)"):
        assert link in text
    run = staged(tmp_path/"source", "nbs/run.ipynb")
    assert "skip_exec" not in run
    assert "(1_one/10_wave.ipynb#what-it-is)" in run and "`[no](link.ipynb)`" in run, "what stands in code is no link"
    assert "file-of-site:../listening.html" in staged(tmp_path/"source", "figures/results/results.md")


def test_what_is_for_nbdev_and_servers_is_left_out(house, tmp_path):
    path = house/"nbs/1_one/10_wave.ipynb"
    nb = nbformat.read(path, 4)
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"})]
    nbformat.write(nb, path)
    stage(house, tmp_path/"source")
    text = staged(tmp_path/"source", "nbs/1_one/10_wave.ipynb")
    assert "secret" not in text and "#|" not in text and "widget" not in (tmp_path/"source/nbs/1_one/10_wave.ipynb").read_text()
    assert "data:audio/wav" in text and "href" not in text, "an excerpt's links to what it left out are taken off"
    assert "\n\n$$x = " in text, "a formula stands by itself"


@pytest.mark.parametrize("link, why", [("11_none.ipynb", "no such file"), ("10_wave.ipynb#nowhere", "no such heading"), ("#nowhere", "no such heading"),
                                       ("../../../outside.md", "no such file")])
def test_a_dead_link_is_named(house, tmp_path, link, why):
    write_notebook(house/"nbs/1_one/20_late.ipynb", f"# Late\n\n[x]({link})")
    write_notebook(house/"nbs/1_one/30_later.ipynb", f"# Later\n\n<a href=\"{link}\">x</a>")
    with pytest.raises(ValueError) as error: stage(house, tmp_path/"source")
    assert str(error.value).split("\n") == [f"nbs/1_one/{name}.ipynb: dead link {link} ({why})" for name in ("20_late", "30_later")]


@pytest.mark.parametrize("html, problem", [
    ('<a href="b.html">x</a>', "b.html does not exist"), ('<a href="#b">x</a>', "#b has no such anchor"), ('<a href="c.html#b">x</a>', "c.html#b has no such anchor"),
    ('<script src="https://example.org/x.js"></script>', "https://example.org/x.js is loaded from elsewhere"), (player(0), "player 0 has no sound"),
    ('<audio src="data:audio/wav;base64,AAAA"></audio>', "player 0 cannot be read"), ("<table></table>", "a table does not scroll")])
def test_check_names_what_is_wrong(tmp_path, html, problem):
    good = f'<p id="here"><a href="#here">x</a><a href="c.html">x</a><a href="https://example.org">x</a></p><div class="cell_output"><table></table></div>{player(1)}'
    (tmp_path/"a.html").write_text(good)
    (tmp_path/"c.html").write_text("<br>")
    counted, problems = check(tmp_path)
    assert problems == [] and counted == {"pages": 2, "links": 3, "players": 1, "seconds": 1.}
    (tmp_path/"d.html").write_text(html)
    assert [text.startswith(f"d.html: {problem}") for text in check(tmp_path)[1]] == [True]


def test_help_shows_what_parameters_mean():
    from latentalign import Autoencoder
    assert "full scale ±1" in pydoc.render_doc(Autoencoder.encode)
    assert "Parameters" in pydoc.render_doc(Autoencoder.from_pretrained)


@built
def test_site_is_built_from_a_folder_of_notebooks(site):
    page = (site/"nbs/1_one/10_wave.html").read_text()
    assert '<audio controls src="data:audio/wav' in page and "tag_export" in page and 'href="../2_two/10_sine.html"' in page
    assert (site/"figures/listening.html").is_file() and (site/"search.html").is_file() and "sine" in (site/"searchindex.js").read_text()


@built
@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_in_a_browser(site, width):
    done = subprocess.run([sys.executable, TOP/"tests"/"browser_site.py", site, str(width)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in map(json.loads, done.stdout.splitlines()):
        assert page["scroll"] <= page["inner"] and not page["wide"] and not page["broken"] and not page["requests"] and not page["waiting"], page
        assert page["durations"] == ([.5] if page["page"] == "nbs/1_one/10_wave.html" else [])
