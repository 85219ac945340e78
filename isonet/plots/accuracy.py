"""The uncertainty of an accuracy: its standard error, the size of one image, and the smallest range to draw."""

import math
from collections.abc import Sequence
from typing import Any

from isonet.plots import at_least

_FEWEST = 10  # images; in a smaller range, a few images look like a trend


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy, in percent, or the share of one image if that is larger.

    accuracy: in percent. images: the number of images.
    """
    share = accuracy / 100
    return 100 * max(math.sqrt(max(0.0, share * (1 - share)) / images), 1 / images)


def error_bar_note(images: Sequence[int | None]) -> str:
    """Return an explanation of the error bars and the size of one image, or "" if the number of images is unknown."""
    known = {number for number in images if number}
    if len(known) != 1:
        return "± one standard error, by the number of validation images" if known else ""
    (number,) = known
    return f"± one standard error on {number:,} images; one image is {100 / number:.2g} points"


def explain_error_bars(axis: Any, images: Sequence[int | None]) -> None:
    """Explain the error bars above a panel of accuracies, and make its y axis span at least ten images."""
    axis.set_title(error_bar_note(images), size="small")
    at_least(axis, least_range(images))


def least_range(images: Sequence[int | None]) -> float:
    """Return the smallest range of accuracies to draw, in percentage points.

    The range is ten images of the smallest validation set, or 1 if all numbers of images are unknown.
    """
    return 100 * _FEWEST / min((number for number in images if number), default=100 * _FEWEST)
