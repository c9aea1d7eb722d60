"""The manual's settings: `sphinx-build -W --keep-going docs build/docs`.

Building needs no network: formulas become MathML, which browsers draw themselves, and there are no
links into the documentation of other projects (intersphinx).
"""

import ast
import inspect
import os
import textwrap

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
    "sphinx.ext.viewcode",
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
nb_merge_streams = True

# The API reference.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 60
default_role = "py:obj"  # a name in backticks is a link if it is one of ours
add_module_names = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# The pages.
html_theme = "sphinx_book_theme"
html_title = f"p2t_jax {version}"
html_logo = "_static/logo.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_show_copyright = False
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "use_repository_button": True,
        "use_issues_button": True,
    }
html_math_renderer = "mathml"


def _inline(writer, node):
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _display(writer, node):
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise SkipNode


def _signature(app, what, name, obj, options, signature, returns):
    """Annotations and defaults as the source has them: `optax.Params` is a union of a page."""
    if what != "function":
        return None
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    (function,) = ast.parse(source).body
    arguments = ast.unparse(function.args)
    for constant in ("AGGRESSIVENESS", "PARTITION_RATIO"):
        arguments = arguments.replace(f"={constant}", "=SECTION_5_1_2")
    return f"({arguments})", ast.unparse(function.returns)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _signature)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
