"""The manual's settings: `sphinx-build -W --keep-going docs build/docs`.

Building needs no network: formulas become MathML, which browsers draw themselves, and there are no
links into the documentation of other projects (intersphinx).
"""

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import p2t_jax

project = "p2t_jax"
author = "The p2t_jax authors"
release = version = p2t_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
nitpicky = True  # a name in a role such as {py:func} must be one of ours
nitpick_ignore_regex = [("py:(obj|class|exc)", "(?s).*")]  # names in backticks may be anybody's

# Markdown and notebooks.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# The API reference.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings say more: shapes, dtypes, ranges
default_role = "py:obj"  # a name in backticks is a link if it is one of ours
add_module_names = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# The pages.
html_theme = "sphinx_book_theme"
html_title = "p2t_jax"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_show_copyright = False
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
html_math_renderer = "mathml"


def _inline(writer, node):
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _display(writer, node):
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
