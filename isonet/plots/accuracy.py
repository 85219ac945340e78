"""What a difference between accuracies is worth: the standard error, one image, and the smallest range to draw."""

import math
from collections.abc import Sequence
from typing import Any

from isonet.plots import at_least

_FEWEST = 10  # images: a smaller range would make a trend of a few of them


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy on ``images`` images, both in percent, or one image if that is more."""
    share = accuracy / 100
    return 100 * max(math.sqrt(max(0.0, share * (1 - share)) / images), 1 / images)


def worth(images: Sequence[int | None]) -> str:
    """Return what an error bar and an image are worth, or "" if the number of validation images is unknown."""
    known = {number for number in images if number}
    if len(known) != 1:
        return "± one standard error, by the number of validation images" if known else ""
    (number,) = known
    return f"± one standard error on {number:,} images; one image is {100 / number:.2g} points"


def show_worth(axis: Any, images: Sequence[int | None]) -> None:
    """Write above a panel of accuracies what an image is worth, and make the y axis span at least ten of them."""
    axis.set_title(worth(images), size="small")
    at_least(axis, least_range(images))


def least_range(images: Sequence[int | None]) -> float:
    """Return the smallest range of accuracies to draw, in points: ten of the fewest images, or 1 if none is known."""
    return 100 * _FEWEST / min((number for number in images if number), default=100 * _FEWEST)
