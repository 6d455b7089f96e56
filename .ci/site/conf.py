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
nb_execution_mode, nb_merge_streams = "off", True
myst_enable_extensions, myst_heading_anchors, myst_heading_slug_func = ["dollarmath", "amsmath"], 6, "stage.slug"
myst_url_schemes = {"http": None, "https": None, "mailto": None, "file-of-site": {"url": "{{path}}"}}
autodoc_default_options = {"members": True, "inherited-members": "Module", "member-order": "bysource"}
autodoc_typehints, autoclass_content, default_role = "none", "both", "literal"
add_module_names, toc_object_entries, napoleon_use_rtype = False, False, False

# the page itself brings what draws formulas: one file, and nothing is asked of a network
mathjax = str(next(file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js").locate())
mathjax_path, mathjax3_config = "tex-svg.js", {"svg": {"fontCache": "global"}}

html_theme, html_title, html_static_path, html_css_files = "sphinx_book_theme", cfg["title"], ["static", mathjax], ["site.css"]
html_theme_options = {"repository_url": cfg["git_url"], "use_repository_button": True, "show_toc_level": 2,
                      "use_download_button": False, "use_fullscreen_button": False,
                      "navbar_start": [], "navbar_center": [], "navbar_end": [], "navbar_persistent": []}
html_copy_source, html_show_sphinx, html_use_index = False, False, False
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]


def escape(app, what, name, thing, options, lines):
    "Docstrings are prose: nothing in them but `code` is markup."
    lines[:] = ["".join(part if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in re.split(r"(`[^`]*`)", line)) for line in lines]


def setup(app):
    "Docments join the docstrings before they are read."
    document = next((getattr(import_module(module), name) for name, (module, *_) in faces(top, ["document"]).items()), None)
    for name, (module, *_) in faces(top).items(): document(getattr(import_module(module), name))
    app.connect("autodoc-process-docstring", escape, priority=400)
