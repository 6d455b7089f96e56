"""What Sphinx asks for; names and versions stand in settings.ini. `python .ci/site` builds the site."""
import os
import re
import sys
from importlib import import_module
from importlib.metadata import files
from pathlib import Path

here = Path(__file__).resolve().parent
top = Path(os.environ.get("SITE_OF", here.parent.parent))
sys.path[:0] = [str(here), str(top)]

from stage import faces, settings

cfg = settings(top)
project, author, copyright, release = cfg["title"], cfg["author"], cfg["copyright"], cfg["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

nb_execution_mode, nb_merge_streams = "off", True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors, myst_heading_slug_func = 6, "stage.slug"
myst_url_schemes = {"http": None, "https": None, "mailto": None, "file-of-site": {"url": "{{path}}"}}

autodoc_default_options = {"members": True, "inherited-members": "Module", "member-order": "bysource"}
autodoc_typehints, autoclass_content, default_role = "none", "both", "literal"
add_module_names, toc_object_entries, napoleon_use_rtype = False, False, False

# a page brings what draws its formulas: one file, and nothing is asked of a network
mathjax = next(file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js")
mathjax_path, mathjax3_config = "tex-svg.js", {"svg": {"fontCache": "global"}}

html_theme, html_title = "sphinx_book_theme", cfg["title"]
html_static_path, html_css_files = ["static", str(mathjax.locate())], ["site.css"]
html_copy_source, html_show_sphinx, html_use_index = False, False, False
html_context = {"default_mode": "auto"}  # light or dark, as the reader has it
html_theme_options = {
    "repository_url": cfg["git_url"], "use_repository_button": True, "use_download_button": False,
    "use_fullscreen_button": False, "show_toc_level": 2,
    "navbar_start": [], "navbar_center": [], "navbar_end": [], "navbar_persistent": [],
}


def escape(line):
    "A line of a docstring, in which nothing but `code` is markup."
    return re.sub(r"(`[^`]*`)|([*|]|(?<=\w)_(?=\W|$))", lambda found: found[1] or "\\" + found[2], line)


def escape_docstring(app, what, name, thing, options, lines): lines[:] = map(escape, lines)


def setup(app):
    "Docments join the docstrings before they are read."
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
    for module, *_ in faces(top, ["document"]).values():
        document = import_module(module).document
        for name, (home, *_) in faces(top).items(): document(getattr(import_module(home), name))
