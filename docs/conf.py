"""Sphinx settings: Markdown through MyST, the Furo theme, and a strict build.

python -m sphinx -W docs site
"""

from importlib.metadata import version as installed

project = "pytest-ollama-perf"
version = release = installed(project)
project_copyright = "the authors of pytest-ollama-perf, MIT licence"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = project
html_extra_path = ["report.schema.json", "contract.schema.json"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
