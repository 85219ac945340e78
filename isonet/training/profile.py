"""Where the time of training steps goes, by torch's profiler."""

from __future__ import annotations

from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

ROWS = 20
_SKIPPED = 2  # steps before the first that counts: they allocate, choose kernels and compile


class StepProfile:
    """Times ``steps`` training steps, after the first two, while its ``with`` block runs; 0: does nothing.

    Call ``step`` after each step. ``table`` then lists the costliest operators; None where the block
    ended before ``steps`` were seen.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.table: str | None = None
        self.on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        plan = schedule(wait=_SKIPPED - 1, warmup=1, active=steps, repeat=1) if steps else None
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._read) if plan else None

    def __enter__(self) -> StepProfile:
        if self.profiler:
            self.profiler.start()
        return self

    def step(self) -> None:
        if self.profiler:
            self.profiler.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.profiler:
            self.profiler.stop()

    def _read(self, finished: profile) -> None:
        order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        self.table = finished.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=44)
