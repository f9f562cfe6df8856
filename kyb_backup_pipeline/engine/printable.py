"""Text of others in our pages: names, labels and messages that nobody here chose.

A file's name may hold line breaks, half characters, or what turns a terminal's colours, a reader's direction of
writing or the end of a table's cell. All that is shown for what it is. What HTML needs beside, its template does.
"""

import re
from typing import Any

_MARKUP = re.compile(r"([\\`*~\[\]|])")


def printable(text: str) -> str:
    r"""One line in which nothing is invisible: white space is one blank, what cannot be shown is ``\x1b``."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _named(c) for c in line)


def markdown_text(text: str) -> str:
    """The same in Markdown: no cell of a table ends early, no tag, link or picture is made."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\1", line)


def shown(value: Any) -> Any:
    """What a template puts in (its ``finalize``), before it is escaped; our own markup stays."""
    return value if hasattr(value, "__html__") else printable(str(value))


def _named(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
