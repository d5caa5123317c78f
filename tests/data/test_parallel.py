"""Work over processes: what is shared reaches each without being sent, and a process that dies is said."""

import os
import threading

import pytest

from speechgpt.data.parallel import in_processes


def scaled(piece: int, factor: int, lock: object) -> tuple[int, int]:
    assert isinstance(lock, type(threading.Lock()))
    return piece * factor, os.getpid()


def add_one(piece: int) -> int:
    return piece + 1


def die(piece: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("jobs", [1, 3])
def test_shared_objects_reach_the_function_even_those_that_cannot_be_sent(jobs):
    found = list(in_processes(scaled, range(20), jobs, shared=(10, threading.Lock())))
    assert sorted(value for value, _ in found) == [10 * n for n in range(20)]
    assert ({pid for _, pid in found} == {os.getpid()}) == (jobs == 1)


def test_nothing_is_shared_unless_it_is_given():
    list(in_processes(scaled, range(4), 2, shared=(1, threading.Lock())))
    assert sorted(in_processes(add_one, range(4), 2)) == [1, 2, 3, 4]


def test_a_process_that_is_killed_is_an_error():
    with pytest.raises(OSError, match="one of 2 processes was killed"):
        list(in_processes(die, range(2), 2))
