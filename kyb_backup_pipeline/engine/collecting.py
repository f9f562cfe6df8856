"""Reading much at once without the search for cycles in between."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Let Python's collector rest meanwhile, for work that makes tens of thousands of objects and no cycles.

    It looks through all of them again and again while they come, which takes as long as to read them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
