"""Running jobs on several threads, for kernels that release the GIL."""

import collections
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")


def run_jobs(do: Callable[[Job], object], jobs: Sequence[Job]) -> None:
    """Runs `do(job)` for each job, on the calling thread and on those of a pool.

    The calling thread takes jobs like any other. So this always ends: in a forked child, at
    interpreter exit, inside a job, and where no thread can be started.

    Args:
        do: what to do. Jobs begin in order and may run at the same time.
        jobs: one argument of `do` each. A single one runs on the calling thread.

    Raises:
        BaseException: What `do` raised for the first of the jobs that failed. Jobs that had not
            begun by then do not begin.
    """
    waiting = collections.deque(enumerate(jobs))
    finished = threading.Semaphore(0)
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while not errors:
            try:
                index, job = waiting.popleft()
            except IndexError:
                return
            try:
                do(job)
            except BaseException as error:
                errors[index] = error
            finally:
                finished.release()

    with contextlib.suppress(RuntimeError):  # no new threads, for instance at interpreter exit
        for _ in range(min(cores(), len(jobs)) - 1):
            _pool().submit(work)
    work()
    # Wait for what other threads have begun. They may begin more until the queue is empty.
    taken = len(jobs) - _drop(waiting)
    for _ in range(taken):
        finished.acquire()
    if errors:
        raise errors[min(errors)]


def _drop(waiting: collections.deque[tuple[int, Job]]) -> int:
    """Empties the queue and counts what it took out: these jobs never begin."""
    dropped = 0
    with contextlib.suppress(IndexError):
        while True:
            waiting.popleft()
            dropped += 1
    return dropped


@functools.cache
def cores() -> int:
    """How many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return count or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="p2t_jax")


if hasattr(os, "register_at_fork"):  # A child has none of its parent's threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
