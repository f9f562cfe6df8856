"""The statements of a script of pg_dumpall, one by one.

pg_dumpall prints plain statements with quoted names and strings, comments, and psql's ``\\restrict``
lines; there are no dollar quotes and no COPY in what it prints of roles and tablespaces.
"""

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
      --[^\n]*                     # comment
    | ^\\[^\n]*                    # a command to psql
    | [eE]'(?:[^'\\]|\\.|'')*'     # string with escapes
    | '(?:[^']|'')*'               # string
    | "(?:[^"]|"")*"               # name
    | ;
    | \w+ | [^-\w'";\\]+ | .       # anything else
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


def statements(script: str) -> Iterator[str]:
    """The statements of ``script`` without their semicolons and without comments."""
    current: list[str] = []
    for token in _TOKEN.findall(script):
        if token == ";":
            yield "".join(current).strip()
            current = []
        elif not token.startswith(("--", "\\")):
            current.append(token)
    if rest := "".join(current).strip():
        yield rest
