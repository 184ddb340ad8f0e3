"""The threads of a run: blocks side by side on the cores of a CPU, and samples on their way to the
disk, which are copied, encoded and written while the next are made."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from guidex.data.image_set import default_workers
from guidex.models.denoiser import Denoiser, ExactDenoiser

WAITING = 512  # jobs that may wait for a thread before the sampler has to

Tick = Callable[[float], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


class _Stopped(Exception):
    """Another block failed, or the user wants to stop."""


def in_parallel(
    work: Callable[[_T, Tick], _R], items: Sequence[_T], model: Denoiser, device: str, tick: Tick
) -> list[_R]:
    """Do all items on a device; returns their results, in order. `work` is called with an item and
    a function to tell progress to, at least once per solver step. Raises the first exception of any
    item; the others stop at their next tick.

    Small tensor operations gain little from several cores, and their threads wait for each other
    after every one. So each core takes an item of its own. Exact denoisers always compute with one
    thread, so that their results do not depend on the machine.
    """
    if device != "cpu":
        return [work(item, tick) for item in items]
    cores = default_workers()
    workers = max(1, min(cores, len(items)))
    threads = 1 if isinstance(model, ExactDenoiser) else cores // workers
    before, stop, lock = torch.get_num_threads(), threading.Event(), threading.Lock()

    def told(amount: float) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            tick(amount)

    # OpenMP's number of threads is set for each thread of ours, MKL's for the process.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        futures = [pool.submit(work, item, told) for item in items]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


class Writers:
    """Threads that do small jobs in the order given, at most WAITING ahead.

    Leaving its context waits until everything is written, and raises what a job has raised.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(default_workers())
        self._room = threading.Semaphore(WAITING)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown(cancel_futures=self._error is not None)
        if error is None and self._error is not None:
            raise self._error

    def submit(self, job: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Run a job soon; waits where too many are waiting already. A job may wait for the results
        of those before it.

        Raises:
            Exception: what an earlier job raised.
        """
        if self._error is not None:
            raise self._error
        self._room.acquire()
        future = self._pool.submit(job, *arguments)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future) -> None:
        self._room.release()
        if not future.cancelled():
            self._error = self._error or future.exception()


class Arriving:
    """Samples on their way to memory from any device; nobody waits before they are wanted."""

    def __init__(self, samples: Tensor) -> None:
        self._samples = samples.to("cpu", non_blocking=True)  # pinned memory, if from a GPU
        self._device = samples.device
        self._arrived: torch.cuda.Event | None = None
        if samples.is_cuda:
            # Blocking: threads that wait sleep, and leave the cores to those that compute.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(samples.device))

    def numpy(self) -> np.ndarray:
        """The samples as an array, once they have arrived."""
        if self._arrived is not None:
            # A thread begins on GPU 0, and would take memory there for a context of its own.
            with torch.cuda.device(self._device):
                self._arrived.synchronize()
        return self._samples.numpy()
