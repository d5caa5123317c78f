"""Independent pieces of work over processes; a process that dies is an error and not a wait for ever."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    return len(os.sched_getaffinity(0))


_shared: tuple = ()  # of this process


def _begin(parent: int, shared: tuple) -> None:
    """Ends this process when `parent` has gone: a killed command must not write on beside the next one."""
    global _shared
    _shared = shared

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(function: Callable, piece):
    return function(piece, *_shared)


def in_processes(
    function: Callable[..., R], work: Sequence[T], jobs: int = 0, shared: tuple = ()
) -> Iterator[R]:
    """Yields `function(w, *shared)` for each `w`, as they finish; `jobs` 0 is one process for each core.

    `shared` is inherited by the processes and not sent to them. With one job or one piece all happens in this
    process. Raises OSError when a process was killed.
    """
    jobs = min(jobs or cores(), len(work))
    if jobs < 2:
        yield from (function(piece, *shared) for piece in work)
        return
    pool = ProcessPoolExecutor(jobs, get_context("fork"), _begin, (os.getpid(), shared))
    try:
        for done in as_completed([pool.submit(_call, function, w) for w in work]):
            yield done.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {jobs} processes was killed, perhaps for want of memory; what is done is kept: run the "
            "same command again, with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
