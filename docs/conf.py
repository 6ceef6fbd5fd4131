"""Sphinx's settings. `make docs` builds the site; it needs no network."""

import inspect
import os
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.docutils import SphinxDirective

import torchlipreg
from torchlipreg import __version__

PACKAGE = Path(torchlipreg.__file__).parent

project = "torchlipreg"
author = "the authors of torchlipreg"
release = version = __version__
language = "en_GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["images"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# References into other projects need their inventories, which are on the network.
intersphinx_mapping = {}
if os.environ.get("DOCS_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# Every reference to the library's own names must lead somewhere.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!torchlipreg\.).*")]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature is long enough, and the arguments say what they take
autodoc_preserve_defaults = True  # 8 / 255 and math.inf as they are written
napoleon_use_rtype = False
napoleon_use_ivar = True  # autodoc describes a NamedTuple's attributes already
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"torchlipreg {version}"
html_favicon = "_static/mark.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = html_show_copyright = False
html_math_renderer = "mathml"  # browsers show it themselves: no script from the network
pygments_style, pygments_dark_style = "friendly", "monokai"


def math(translator, node):
    is_block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if is_block else "inline")
    translator.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def escaped(line):
    """Let shapes, (N, *), and bars be themselves, which are mark-up in reStructuredText."""
    return re.sub(r"\|(\S[^|`]*)\|", r"\|\1\|", re.sub(r", \*\)", r", \*)", line))


def escape(app, what, name, obj, options, lines):
    if what == "property":  # napoleon takes what stands before the first colon for a type
        lines[:] = [*(inspect.getdoc(obj) or "").splitlines(), ""]
    lines[:] = map(escaped, lines)


class Room(SphinxDirective):
    """Document every module of a folder of the library and of those in it: ``.. room:: geometry``."""

    required_arguments = 1

    def run(self):
        room, lines = self.arguments[0], []
        found = (path.relative_to(PACKAGE).with_suffix("").parts for path in (PACKAGE / room).rglob("[!_]*.py"))
        for parts in sorted(found, key=lambda parts: (len(parts), parts)):
            lines += [f".. rubric:: {'/'.join(parts)}.py", ""]
            lines += [f".. automodule:: {'.'.join(('torchlipreg', *parts))}", "   :members:", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    app.add_directive("room", Room)
    app.connect("autodoc-process-docstring", escape, priority=600)  # after napoleon
    app.add_html_math_renderer("mathml", inline_renderers=(math, None), block_renderers=(math, None))
