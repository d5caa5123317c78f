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


def _end_with(parent: int) -> None:
    """Ends this process when `parent` has gone: a killed command must not write on beside the next one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_processes(function: Callable[[T], R], work: Sequence[T], jobs: int = 0) -> Iterator[R]:
    """Yields `function(w)` for each `w`, as they finish; `jobs` 0 is one process for each core.

    With one job or one piece all happens in this process. Raises OSError when a process was killed.
    """
    jobs = min(jobs or cores(), len(work))
    if jobs < 2:
        yield from map(function, work)
        return
    pool = ProcessPoolExecutor(jobs, get_context("fork"), _end_with, (os.getpid(),))
    try:
        for done in as_completed([pool.submit(function, w) for w in work]):
            yield done.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {jobs} processes was killed, perhaps for want of memory; what is done is kept: run the "
            "same command again, with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
