"""An extension of Griffe, for what docstrings of pydist have that those of Google's style have not."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)>>> .*?(?=\n *\n|\Z)", re.MULTILINE | re.DOTALL)
RAISES_WHAT = re.compile(r"^( *)Raises:\n +(What .*)$", re.MULTILINE)


class Docstrings(Extension):
    """Puts a fence around each example, and makes a paragraph of errors that are told in words alone."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of an object that has just been read."""
        if obj.docstring is None:
            return
        text = RAISES_WHAT.sub(r"\1**Raises:** \2", obj.docstring.value)
        obj.docstring.value = EXAMPLE.sub(
            lambda found: f"{found[1]}```pycon\n{found[0].rstrip()}\n{found[1]}```", text
        )
