"""Work divided among ranks: equal parts of a list, and jobs of unequal cost."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Part number ``index`` of ``parts`` parts. The default is the whole."""

    index: int = 0
    parts: int = 1

    def of(self, count: int) -> slice:
        """Return the slice of this part of ``count`` items. The first parts may have one item more than the others."""
        each, rest = divmod(count, self.parts)
        start, stop = (i * each + min(i, rest) for i in (self.index, self.index + 1))
        return slice(start, stop)

    def size(self, count: int) -> int:
        """Return the number of items in this part of ``count``."""
        piece = self.of(count)
        return piece.stop - piece.start


WHOLE = Share()


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Divide jobs among ``parts`` parts of about equal cost, and return the indices of ``costs`` in each part.

    The most expensive remaining job is added to the cheapest part. The most expensive part costs at most 4/3 of
    the optimum (Graham 1969). The same costs always give the same parts.
    """
    divided: list[list[int]] = [[] for _ in range(parts)]
    sums = [0.0] * parts
    for job in sorted(range(len(costs)), key=lambda j: -costs[j]):
        part = sums.index(min(sums))
        divided[part].append(job)
        sums[part] += costs[job]
    return [sorted(jobs) for jobs in divided]
