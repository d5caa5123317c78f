"""How a process starts that is to answer soon."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_start() -> Iterator[None]:
    """For imports and loading: they make half a million objects, and nearly all stay. Looking for garbage
    among them takes a tenth of the start, and would again in the middle of an answer.

    What was made is never looked at again; in a process that starts several times, of the first time alone.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()
