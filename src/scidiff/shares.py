"""A share of the work: each of several processes, or of the jobs of an array, does one into a file of its own.

Shares need not know of each other: files are joined when all are there. A denoised or predicted cell does not depend
on who works on it; what is generated is as likely, drawn by other random numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scidiff.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Share ``number``, from 1, of ``of``."""

    number: int = 1
    of: int = 1

    @classmethod
    def asked(cls, text: str | None) -> Share:
        """Return what ``text`` such as "3/16" says; without it, the place of this process among those started together.

        Launchers (torchrun, ``accelerate launch``) tell processes their places by RANK and WORLD_SIZE.

        Raises
        ------
        InputError
            The text says something else.
        """
        if text is None:
            of = int(os.environ.get("WORLD_SIZE", 1))
            return cls(int(os.environ.get("RANK", 0)) + 1, of) if of > 1 else cls()
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"share {text!r} is not one of several, as in 3/16")
        return cls(int(found[1]), int(found[2]))

    def among(self, items: Sequence[Item], *, what: str) -> Sequence[Item]:
        """Return this share of some items, neighbours together; shares differ by one item at most.

        Raises
        ------
        InputError
            It is empty, and not all there is; ``what`` says of what there are too few.
        """
        first, last = ((self.number - 1 + end) * len(items) // self.of for end in (0, 1))
        if first == last and self.of > 1:
            raise InputError(f"share {self.number}/{self.of} is empty: of {len(items)} {what} make fewer shares")
        return items[first:last]

    def seed(self, seed: int) -> int:
        """Return a seed of its own for this share."""
        import numpy as np

        return seed if self.of == 1 else int(np.random.SeedSequence([seed, self.number]).generate_state(1)[0])

    def file(self, path: Path) -> Path:
        """Return the file for this share of what ``path`` would hold."""
        return path if self.of == 1 else path.with_name(f"{path.stem}.{self.number}-of-{self.of}{path.suffix}")
