"""The site: `python -m sphinx -W --keep-going -b html docs build/site`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# The package beside the pages, whatever is installed; and what writes the pages that are generated.
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from stratrun import __version__ as release  # noqa: E402

project = "stratrun"
author = "the stratrun maintainers"
copyright = "the stratrun maintainers"
version = release
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "reference",
]
exclude_patterns = ["_ext", "_static"]
nitpicky = True
# What others document, and what only annotations name: shown, and leading nowhere.
nitpick_ignore_regex = [
    ("py:.*", r"(?!stratrun\.).*"),
    ("py:class", r"stratrun\.(context|[a-z_]+\.[a-z_.]+)\.[A-Z]\w*"),
]

# In docstrings, as in the pages, one backtick is code.
default_role = "literal"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
# Documented without them: their packages are large, and not what the pages are about.
autodoc_mock_imports = ["mlflow", "wandb"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 90
toc_object_entries = False
python_use_unqualified_type_names = True

html_theme = "pydata_sphinx_theme"
html_title = f"stratrun {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "stratrun"},
    "show_prev_next": True,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"index": []}
