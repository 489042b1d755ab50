"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from sphinx.util import inspect

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Downpour"
author = "the Downpour authors"
release = version = version_of("downpour-ps")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Downpour"
default_role = "code"

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

myst_heading_anchors = 3  # links to headings work as on GitHub


def escape(text: str) -> str:
    """Docstrings are plain text with `code`: what else reStructuredText would read is escaped."""
    parts = re.split("(`[^`]*`)", text)  # prose, code, prose, ...
    prose = [part.replace("|", "\\|") for part in parts[::2]]
    prose[1:] = [f"\\ {part}" if part[:1].isalnum() else part for part in prose[1:]]  # `Name`s
    parts[::2] = prose
    return "".join(parts)


def setup(app: Sphinx) -> None:
    def on_docstring(*event: Any) -> None:
        lines: list[str] = event[-1]
        lines[:] = escape("\n".join(lines)).split("\n")

    def on_signature(app: Any, what: str, name: str, thing: Any, *event: Any) -> Any:
        """Run refuses unknown settings in __new__, whose signature says nothing."""
        if what != "class" or "__new__" not in vars(thing):
            return None
        signature = inspect.signature(thing.__init__, bound_method=True)
        return (
            inspect.stringify_signature(
                signature, show_annotation=False, show_return_annotation=False
            ),
            "",
        )

    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("autodoc-process-signature", on_signature)
