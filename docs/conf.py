"""How the documentation is built: MyST pages, the furo theme, every warning an error."""

from chump_orchestrator import __version__

project = "chump-orchestrator"
author = "The chump-orchestrator authors"
project_copyright = "The chump-orchestrator authors"
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"chump-orchestrator {__version__}"
