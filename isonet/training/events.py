"""The metrics of a run as events for TensorBoard, if RUNTIME.TENSORBOARD asks for them."""

from __future__ import annotations

from collections.abc import Sequence

from isonet.errors import UserError
from isonet.files.run_folder import RunFolder
from isonet.plots import Row


def require_tensorboard() -> None:
    """Raise ``UserError`` where the package that writes events is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "RUNTIME.TENSORBOARD True needs the package tensorboard: pip install 'isonet[tensorboard]', or tensorboard"
        ) from None


class Events:
    """Writes each row of metrics as scalars under its keys, with the epoch as the step.

    A run that goes on writes its events anew, as it does its metrics: a kill may have come before those of the
    last epoch, or a resumed checkpoint lie before them. ``purge_step`` has a TensorBoard that is open forget the
    former ones, so that no point is there twice.
    """

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for file in folder.events():
            file.unlink(missing_ok=True)
        self.writer = SummaryWriter(str(folder.path), purge_step=1)
        self.written = 0  # rows

    def update(self, rows: Sequence[Row]) -> None:
        """Write the rows that are not written yet, down to the disk."""
        for row in rows[self.written :]:
            for key, value in row.items():
                if key != "epoch":
                    self.writer.add_scalar(key, value, int(row["epoch"]))
        self.written = len(rows)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
