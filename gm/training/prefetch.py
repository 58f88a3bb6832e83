"""Prefetching: the next batch is prepared on a thread, while the device computes."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

from gm.training.batches import BatchLoader
from gm.training.train_step import Batch


def batches(loader: BatchLoader, steps: range, threaded: bool) -> Generator[Batch, None, None]:
    """Yield the batch of each of `steps`, counted from 0; if `threaded`, prepared while the one before it is used.

    A batch is a function of its step alone, so the thread changes no value. It ends with the generator.
    """
    if not threaded:  # on the CPU it would take a core from the kernels
        yield from map(loader.batch, steps)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        upcoming = [thread.submit(loader.batch, step) for step in steps[:1]]
        for step in steps:
            batch = upcoming.pop().result()
            if step != steps[-1]:
                upcoming.append(thread.submit(loader.batch, step + steps.step))
            yield batch
