"""Long work, one piece after the other in a thread beside the server, that can be watched and stopped.

Cells are made with all cores, so two requests at the same time would make both slower: they stand in line. The thread
is a daemon: the studio can be closed in the middle of something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Somebody asked to stop."""


@dataclass
class Job:
    """What is to be done: ``done`` of ``total``, counted by the thread that works and read by those that watch.

    ``total`` is 0 until the work says it.
    """

    what: str
    total: int = 0
    done: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def at(self, done: int, total: int) -> None:
        """Say how far the work is; raises :class:`Stopped` there if it shall stop."""
        self.done, self.total = done, total
        self.check()

    def check(self) -> None:
        """Raise :class:`Stopped` if the work shall stop."""
        if self.stopping:
            raise Stopped

    def stop(self) -> None:
        """Ask the work to stop when it next says how far it is."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()


class Desk:
    """The place where one job at a time is done; ``now`` is that job."""

    def __init__(self) -> None:
        self.now: Job | None = None
        self._line: SimpleQueue[tuple[Job, Callable[[Job], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="studio").start()

    def do(self, job: Job, work: Callable[[Job], T]) -> Future[T]:
        """Return what ``work(job)`` will have returned when its turn came; :class:`Stopped` where it was stopped."""
        result: Future[T] = Future()
        self._line.put((job, work, result))
        return result

    def _work(self) -> None:
        while True:
            job, work, result = self._line.get()
            self.now = job
            try:
                job.check()
                made = work(job)
                job.check()  # what was stopped has no result
            except BaseException as error:
                outcome = partial(result.set_exception, error)
            else:
                outcome = partial(result.set_result, made)
            self.now = None
            with suppress(InvalidStateError):  # nobody waits for it any more
                outcome()
