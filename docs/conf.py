"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

import os
from pathlib import Path
from typing import Any

import probgen

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"

project = "probgen"
author = "the probgen authors"
copyright = author
version = release = probgen.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]

# Guides are programs: every page is run anew at every build, and a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, for want of a widget that pages could not show
nb_execution_excludepatterns = ["gallery/*", "adding/method*", "adding/model*", "api/*"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # the engine's model and the method of programs are both called FeynmanKac
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # fields are arguments of the constructor

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"

html_theme = "furo"
html_title = "probgen"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False


def write_gallery() -> None:
    """One page per folder of ``models/``: its README, and its program or demonstration."""
    for page in (HERE / "gallery").glob("*.md"):
        if page.stem != "index" and not (MODELS / page.stem / "README.md").is_file():
            page.unlink()  # of a model that is gone
    for folder in sorted(path.parent for path in MODELS.glob("*/README.md")):
        above = f"../../models/{folder.name}"
        page = [f"```{{include}} {above}/README.md", "```"]
        for file, title in (("model.py", "The program"), ("demo.py", "The demonstration")):
            if (folder / file).is_file():
                page += ["", f"## {title}", "", f"```{{literalinclude}} {above}/{file}", ":language: python", "```"]
        target, text = HERE / "gallery" / f"{folder.name}.md", "\n".join(page) + "\n"
        if not target.is_file() or target.read_text() != text:
            target.write_text(text)


def spread_guides(app: Any, env: Any, docnames: list[str]) -> None:
    """Guides, which are run, at even distances: Sphinx gives each process a stretch of the list to read."""
    parts = [[name for name in docnames if name.startswith("guides/") == run] for run in (True, False)]
    place = {name: (i + 0.5) / len(part) for part in parts for i, name in enumerate(part)}
    docnames.sort(key=lambda name: place[name])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    write_gallery()
    app.connect("env-before-read-docs", spread_guides)
