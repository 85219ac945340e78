"""Compare runs: their curves in one picture, their figures in a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from isonet.config import default_cfg
from isonet.errors import UserError, printable, run_cli
from isonet.files.run_folder import RunFolder
from isonet.files.storage import write_file
from isonet.plots import require_matplotlib
from isonet.plots.curves import PANELS, SHOWN, draw_runs
from isonet.tools.cli import Parser
from isonet.tools.summary import COLUMNS, cells, read_rows, read_timing, summarise, text_table

EXAMPLES = """\
examples:
  python -m isonet.tools.curves outputs/cls/digits/first outputs/cls/digits/second
  python -m isonet.tools.curves first second --key top1 --output compare.png"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The runs and the options."""
    parser = Parser(
        prog="python -m isonet.tools.curves",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder of a run, or its name below OUTPUT_DIR")
    parser.add_argument("--output", type=Path, default=Path("runs.png"), metavar="FILE.png", help="(default: runs.png)")
    parser.add_argument("--key", choices=list(PANELS), help="one panel with this (default: four panels)")
    parser.add_argument(
        "--output-dir", type=Path, default=Path(default_cfg().OUTPUT_DIR), metavar="DIR",
        help="OUTPUT_DIR of the runs that are named (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show where an error arose")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.output.suffix != ".png":
        parser.error(f"--output is a .png file, got {args.output}")
    return args


def main(args: argparse.Namespace) -> None:
    """Print the table and draw the picture."""
    folders = [find_run(name, args.output_dir) for name in args.runs]
    runs, lines = {}, []
    for name, folder in zip(_names(folders), folders, strict=True):
        rows, damaged = read_rows(folder.metrics)
        if not rows:
            raise UserError(f"{printable(folder.metrics)}: holds no epoch yet")
        if damaged:
            print(f"{printable(folder.metrics)}: {damaged} damaged or half-written lines are left out", flush=True)
        runs[name] = rows
        lines.append([name, *cells(summarise(rows, read_timing(folder)))])
    print(text_table(["run", *COLUMNS], lines), flush=True)
    require_matplotlib(str(args.output))
    write_file(args.output, draw_runs(runs, [args.key] if args.key else SHOWN))
    print(f"drawn in {printable(args.output)}")


def find_run(name: str, output_dir: Path) -> RunFolder:
    """The folder that ``name`` means: itself, or below ``output_dir``, or below one of the data sets there."""
    data_sets = sorted(path for path in output_dir.iterdir() if path.is_dir()) if output_dir.is_dir() else []
    places = [Path(name), output_dir / name, *(data_set / name for data_set in data_sets)]
    found = [place for place in places if RunFolder(place).metrics.is_file()]
    if not found:
        raise UserError(
            f"no run {printable(name)[:200]}: neither there nor below {printable(output_dir)} is a folder of this name "
            "with a metrics.jsonl"
        )
    if len(found) > 1 and found[0] != places[0]:
        raise UserError(f"{printable(name)} is the name of {len(found)} runs: {' and '.join(map(str, found))}")
    return RunFolder(found[0])


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The last parts of the paths, as many as tell the runs apart."""
    paths = [folder.path.absolute() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError(f"{printable(max(paths, key=paths.count))} is named twice")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
