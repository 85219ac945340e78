"""The sections in their order, each with its share of the time."""

from __future__ import annotations

import argparse
import shutil

import torch

from benchmarks.common import machine
from benchmarks.gpu import equality, speed
from benchmarks.gpu.jobs import Results, Section, gpu_facts, run_sections
from benchmarks.gpu.runs import Place, epoch_jobs, launch_jobs, resume_jobs, test_jobs


def sections(place: Place) -> list[Section]:
    """Return all sections. Their shares add up to 1."""
    device, toy = place.device, place.toy
    return [
        Section("tests", 0.16, test_jobs(place)),
        Section("equality", 0.14, equality.jobs(device, toy)),
        Section("step times", 0.28, speed.time_jobs(device, toy)),
        Section("penalty", 0.06, speed.share_jobs(device, toy)),
        Section("ResNet-50", 0.12, speed.resnet_jobs(device, toy)),
        Section("torchrun", 0.06, launch_jobs(place)),
        Section("resume", 0.05, [*resume_jobs(place), *equality.repeat_jobs(device, toy)]),
        Section("epochs", 0.13, epoch_jobs(place)),
    ]


def run(args: argparse.Namespace) -> int:
    """Run all sections, print the table, and return the exit code: 1 if a row failed."""
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    folder = args.json.absolute().with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**machine(), **gpu_facts(device), "minutes": args.minutes}
    results = Results(args.json, facts)
    results.write()  # a file that cannot be written is found now and not after the first section
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    images = args.images.absolute() if args.images else None
    run_sections(sections(Place(device, args.toy, folder, images)), args.minutes, results)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    print(f"\nwritten to {args.json}; its table: python -m benchmarks.tables {args.json}")
    return int(results.failed)
