"""Jobs are shared among threads: all of them run, errors arrive, and nothing hangs."""

import os
import subprocess
import sys
import threading
import time

import pytest
from helpers import run_in_a_forked_child

from p2t_jax._host.run_jobs import run_jobs

# This process may have fewer cores than the machine.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
two_cores = pytest.mark.skipif(CORES == 1, reason="one thread does it all")


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_job_runs_once_before_run_jobs_returns(count):
    done = []
    run_jobs(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_a_single_job_runs_on_the_calling_thread():
    threads = []
    run_jobs(lambda _: threads.append(threading.current_thread()), [None])
    assert threads == [threading.current_thread()]


def test_the_error_is_that_of_the_first_job_that_fails():
    def do(job):
        time.sleep(0.001 * (10 - job))
        if job in (3, 4, 5):
            raise ValueError(f"job {job}")

    for _ in range(10):
        with pytest.raises(ValueError, match="job 3"):
            run_jobs(do, range(10))


def test_jobs_that_have_not_begun_by_the_first_error_do_not_begin():
    begun = []

    def do(job):
        begun.append(job)
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        run_jobs(do, range(1000))
    assert len(begun) < 100


def test_jobs_of_jobs_and_of_many_threads_do_not_wait_for_each_other():
    done = []

    def outer(i):
        run_jobs(lambda j: done.append((i, j)), range(20))

    threads = [threading.Thread(target=run_jobs, args=(outer, range(20))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 5 * 20 * 20


def meet():
    """Two jobs that end only if they run at the same time."""
    barrier = threading.Barrier(2)
    run_jobs(lambda _: barrier.wait(30), range(2))


@two_cores
def test_jobs_run_at_the_same_time():
    meet()


@two_cores
@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_forked_child_has_threads_of_its_own():
    meet()
    run_in_a_forked_child(meet)


def test_sharing_at_interpreter_exit_ends():
    code = """
import atexit, os, threading
from p2t_jax._host.run_jobs import run_jobs
say = lambda i: os.write(1, b"%d " % i)  # whole, where print may be interrupted before its newline
run_jobs(say, range(4))
threading._register_atexit(run_jobs, say, range(4))  # before the pool's threads end, and
atexit.register(run_jobs, say, range(4))  # after
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split()) == sorted("0123" * 3)
