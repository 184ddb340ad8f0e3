"""Blocks side by side on the cores of a CPU; one after the other on a GPU."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from guidex.data.image_set import default_workers
from guidex.models.denoiser import Denoiser, ExactDenoiser

_T = TypeVar("_T")
_R = TypeVar("_R")

Tick = Callable[[float], None]


class _Stopped(Exception):
    """Another block failed, or the user wants to stop."""


def in_parallel(
    work: Callable[[_T, Tick], _R], items: Sequence[_T], model: Denoiser, device: str, tick: Tick
) -> list[_R]:
    """Do all items; returns their results, in order.

    Small tensor operations gain little from several cores, and their threads wait for each other
    after every one. So each core takes an item of its own. Exact denoisers always compute with one
    thread, so that their results do not depend on the machine.

    Arguments:
        work: called with an item and a function to tell progress to, at least once per solver step.
        model, device: what is evaluated, and where.

    Raises:
        Exception: the first of any item; the others stop at their next tick.
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
