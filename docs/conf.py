"""The documentation site: Sphinx with MyST. ``make docs`` builds it into docs/_build; a warning is an error."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(REPOSITORY / "src")]

from scidiff import __version__  # noqa: E402

# Sphinx reads files below docs only, so notebooks are shown from copies; these are ignored by git
for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, DOCS / "tutorials" / notebook.name)

project = "scIDiff"
author = "scIDiff developers"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",  # Markdown pages and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in numpy style
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "commands",  # below docs/_ext, as the next two
    "formulas",
    "mathml",
]
exclude_patterns = ["_build", "README.md"]
default_role = "code"  # names in docstrings
highlight_language = "text"  # of formulas and diagrams; other blocks name theirs

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # pages show the outputs stored in the notebooks; tests/test_notebooks.py runs them

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = "scIDiff"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw MathML themselves: nothing is fetched from elsewhere
html_show_copyright = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search field
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def setup(app: object) -> None:
    """Links to notebooks, which are right for readers of the repository, lead to their pages; constants stay inside."""

    def to_pages(app: object, name: str, source: list[str]) -> None:
        source[0] = source[0].replace("](../notebooks/", "](tutorials/")

    def is_constant(app: object, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
        return True if name.isupper() else None

    app.connect("source-read", to_pages)  # type: ignore[attr-defined]
    app.connect("autodoc-skip-member", is_constant)  # type: ignore[attr-defined]
