"""Sphinx settings: Markdown through MyST, the Furo theme, reference pages filled from the code.

python -m sphinx -W docs site
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "pytest-ollama-perf"
version = release = installed(project)
project_copyright = "the authors of pytest-ollama-perf, MIT licence"

extensions = ["myst_parser", "generated"]
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
