"""Work dealt out to several processes: equal parts of a list, and jobs of unequal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The ``index``-th of ``parts`` parts; as it stands, the whole."""

    index: int = 0
    parts: int = 1

    def of(self, count: int) -> slice:
        """Its piece of ``count`` items. Pieces follow each other; the first ones have an item more where they must."""
        each, rest = divmod(count, self.parts)
        start, stop = (i * each + min(i, rest) for i in (self.index, self.index + 1))
        return slice(start, stop)

    def size(self, count: int) -> int:
        """How many of ``count`` items it has."""
        piece = self.of(count)
        return piece.stop - piece.start


WHOLE = Share()


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Deal jobs out so that the costliest part is as cheap as it easily gets: indices of ``costs`` for each part.

    The costliest job that is left goes to the part that has least, which is at most 4/3 of the best there is
    (Graham 1969). The same costs are always dealt out alike.
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    sums = [0.0] * parts
    for job in sorted(range(len(costs)), key=lambda j: -costs[j]):
        part = sums.index(min(sums))
        dealt[part].append(job)
        sums[part] += costs[job]
    return [sorted(jobs) for jobs in dealt]
