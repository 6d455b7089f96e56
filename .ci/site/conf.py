"""What Sphinx asks for; names and versions stand in settings.ini. `python .ci/site` builds the site."""
import os
import re
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
top = Path(os.environ.get("SITE_OF", here.parent.parent))
sys.path[:0] = [str(here), str(top)]

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util.logging import getLogger
from stage import settings

cfg, logger = settings(top), getLogger(__name__)
project, author, copyright, release = cfg["title"], cfg["author"], cfg["copyright"], cfg["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode, nb_merge_streams = "off", True
myst_enable_extensions, myst_heading_anchors, myst_heading_slug_func = ["dollarmath", "amsmath"], 6, "stage.slug"
myst_url_schemes = {"http": None, "https": None, "mailto": None, "file-of-site": {"url": "{{path}}"}}
autodoc_default_options = {"members": True, "inherited-members": "Module", "member-order": "bysource"}
autodoc_typehints, autoclass_content, default_role = "none", "class", "literal"
add_module_names = False

html_theme, html_title, html_static_path, html_css_files = "sphinx_book_theme", cfg["title"], ["static"], ["site.css"]
html_theme_options = {"repository_url": cfg["git_url"], "use_repository_button": True, "show_toc_level": 2,
                      "use_download_button": False, "use_fullscreen_button": False, "home_page_in_toc": False}
html_copy_source, html_show_sphinx, html_math_renderer = False, False, "mathml"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]


def formula(tag, display):
    "What writes a formula as MathML, which needs no script, font or network to be read."
    def visit(translator, node):
        try: translator.body.append(f'<{tag} class="math">{convert(node.astext(), display=display)}</{tag}>')
        except Exception as error: logger.warning("formula %r: %r", node.astext(), error, location=node)
        raise SkipNode
    return visit, None


def escape(app, what, name, thing, options, lines):
    "Docstrings are prose: nothing in them but `code` is markup."
    lines[:] = ["".join(part if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in re.split(r"(`[^`]*`)", line)) for line in lines]


def setup(app):
    app.add_html_math_renderer("mathml", formula("span", "inline"), formula("div", "block"))
    app.connect("autodoc-process-docstring", escape, priority=400)
