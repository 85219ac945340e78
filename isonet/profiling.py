"""The profile of training steps: the time of each part of a step and of its costliest operators."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from isonet.files.storage import write_file

log = logging.getLogger("isonet")

# The names under which ``TrainStep`` records the parts of a step
PENALTY, FORWARD, BACKWARD, UPDATE = PARTS = (
    "penalty and its gradient",
    "forward",
    "backward",
    "update of the weights",
)
OUTSIDE = "loss, metrics and input"
CONVOLUTIONS, SRELU = "convolutions", "SReLU"  # the rows of the network; all other layers are the third row

_ROWS = 20
_UNPROFILED_STEPS = 2  # at the start: they allocate, choose kernels and compile


class StepProfile:
    """Profiles up to ``steps`` training steps after the first two, or none if ``steps`` is 0.

    ``profiled`` is their number, which is smaller if the epoch ends before. If it is not 0, ``parts`` has the
    milliseconds per step of each part, and ``table`` is a text of these, if the steps record parts, and of the
    costliest operators. The text is also written to ``file``, if given. On a GPU, all times are of its kernels.
    """

    def __init__(self, steps: int, device: torch.device, file: Path | None = None) -> None:
        self.steps, self.file, self.table, self.profiled = steps, file, "", 0
        self.parts: dict[str, float] = {}
        self.on_gpu = device.type == "cuda"
        if steps and not self.on_gpu:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without a GPU, torch logs an ERROR
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        plan = schedule(wait=_UNPROFILED_STEPS - 1, warmup=1, active=steps, repeat=1) if steps else None
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._read) if plan else None

    def __enter__(self) -> StepProfile:
        if self.profiler:
            self.profiler.start()
        return self

    def step(self) -> None:
        """Count a step."""
        if self.profiler:
            self.profiler.step()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.profiler:
            self.profiler.stop()
        if not (self.profiler and self.file and kind is None):
            return
        if self.table:
            write_file(self.file, self.table + "\n")
            log.info("the time of %d steps by part and operator: %s", self.profiled, self.file)
        else:
            log.warning("no step is profiled: RUNTIME.PROFILE needs an epoch of more than %d steps", _UNPROFILED_STEPS)

    def _read(self, finished: profile) -> None:
        events = finished.events()
        # The event of the step after the last one is empty
        self.profiled = sum(event.name.startswith("ProfilerStep") and bool(event.cpu_children) for event in events)
        if not self.profiled:
            return
        order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        self.parts = {name: time / self.profiled for name, time in times_of_parts(events, self.on_gpu).items()}
        operators = finished.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=44)
        self.table = f"{format_parts(self.parts)}\n\n{operators}" if self.parts.keys() - {OUTSIDE} else operators


def times_of_parts(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Return the milliseconds of each part of the profiled steps.

    events: torch's ``FunctionEvent`` objects. An event belongs to the part during which it began, in any thread: on a
    GPU, another thread runs the backward pass.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    spans = [event for event in events if event.name in PARTS]
    ranges = sorted((span.time_range.start, span.time_range.end, span.name) for span in spans)
    starts = [start for start, _, _ in ranges]

    @cache
    def layer(event: Any) -> str:
        if "convolution" in event.name:
            return CONVOLUTIONS
        if "SReLU" in event.name:
            return SRELU
        return layer(event.cpu_parent) if event.cpu_parent else "other layers"

    times: dict[str, float] = defaultdict(float)
    for event in events:
        place = bisect_right(starts, event.time_range.start) - 1
        part = ranges[place][2] if place >= 0 and event.time_range.start < ranges[place][1] else OUTSIDE
        name = f"{layer(event)}, {part}" if part in (FORWARD, BACKWARD) else part
        times[name] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000
    return times


def format_parts(parts: dict[str, float]) -> str:
    """Return a table of the parts, the slowest first, and how much faster a step of convolutions alone would be."""
    total = sum(parts.values())
    slowest_first = sorted(parts.items(), key=lambda row: -row[1])
    rows = [f"{name:<32}{time:>12.2f} ms{100 * time / total:>8.1f} %" for name, time in slowest_first]
    convolutions = sum(time for name, time in parts.items() if name.startswith(CONVOLUTIONS))
    alone = f": {total / convolutions:.2f} times faster" if convolutions else ", which a compiled graph does not show"
    return "\n".join([f"{'part of a step':<32}{'time':>15}{'share':>10}", *rows,
                      f"{'step':<32}{total:>12.2f} ms", f"convolutions alone{alone}"])  # fmt: skip
