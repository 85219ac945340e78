"""Compare runs: draw their curves in a picture, and print their figures in a table."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from isonet.config import default_cfg
from isonet.errors import UserError, printable, run_cli
from isonet.files.run_folder import RunFolder
from isonet.files.storage import write_file
from isonet.plots import require_matplotlib
from isonet.plots.runs import PANELS, SHOWN, draw_runs
from isonet.tools.cli import look_for_folder_of, tool_parser
from isonet.tools.summary import COLUMNS, cells, read_rows, summary_of, text_table

EXAMPLES = """\
  python -m isonet.tools.curves outputs/cls/digits/first outputs/cls/digits/second
  python -m isonet.tools.curves first second --key top1 --output compare.png"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the runs and the options."""
    parser = tool_parser("curves", __doc__, EXAMPLES)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder of a run, or its name below OUTPUT_DIR")
    add("--output", type=Path, default=Path("runs.png"), metavar="FILE.png", help="(default: runs.png)")
    add("--key", choices=PANELS, help="draw one panel with this quantity (default: four panels)")
    add("--output-dir", type=Path, default=Path(default_cfg().OUTPUT_DIR), metavar="DIR",
        help="OUTPUT_DIR of the runs that are given by name (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.output.suffix != ".png":
        parser.error(f"--output must be a .png file, got {args.output}")
    return args


def main(args: argparse.Namespace) -> None:
    """Print the table and draw the picture."""
    look_for_folder_of("--output", str(args.output))
    folders = [find_run(name, args.output_dir) for name in args.runs]
    runs, images, lines = {}, {}, []
    for name, folder in zip(short_names([folder.path for folder in folders]), folders, strict=True):
        rows, invalid = read_rows(folder.metrics)
        if not rows:
            raise UserError(f"{folder.metrics} has no finished epoch yet")
        if invalid:
            print(f"{printable(folder.metrics)}: {invalid} invalid or incomplete lines are ignored", flush=True)
        runs[name] = rows
        summary = summary_of(folder)
        images[name] = summary.validation_images
        lines.append([name, *cells(summary)])
    print(text_table(["run", *COLUMNS], lines), flush=True)
    require_matplotlib(str(args.output))
    write_file(args.output, draw_runs(runs, [args.key] if args.key else SHOWN, images))
    print(f"drawn in {printable(args.output)}")


def find_run(name: str, output_dir: Path) -> RunFolder:
    """Return the run at the path ``name``, or the run of that name in ``output_dir`` or in the folder of a data set.

    Raises ``UserError`` if there is no such run, or if several runs have this name.
    """
    places = [Path(name), output_dir / name, *(parent / name for parent in sorted(output_dir.glob("*/")))]
    found = [place for place in places if RunFolder(place).metrics.is_file()]
    if not found:
        raise UserError(
            f"no run {name[:200]}: neither this folder nor one of this name below {output_dir} has a metrics.jsonl"
        )
    if len(found) > 1 and found[0] != Path(name):
        raise UserError(f"{name} is the name of {len(found)} runs: {' and '.join(map(str, found))}")
    return RunFolder(found[0])


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as make them distinct. Raises ``UserError`` for equal paths."""
    paths = [folder.absolute() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError(f"{max(paths, key=paths.count)} is named twice")
    attempts = (["/".join(path.parts[-parts:]) for path in paths] for parts in itertools.count(1))
    return next(names for names in attempts if len(set(names)) == len(names))


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
