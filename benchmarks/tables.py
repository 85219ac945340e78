"""Print the tables of benchmarks/README.md from stored results.

python -m benchmarks.tables                      all of benchmarks/results/
python -m benchmarks.tables outputs/bench/*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.common import Row, table

RESULTS = Path(__file__).parent / "results"


def stored_table(file: Path) -> str:
    """Return the rows of a JSON file written by a benchmark as a Markdown table."""
    return table([Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]])


def show(file: Path) -> None:
    """Print the machine, the sections and the rows of a file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    print(f"\n{file.stem}\n" + ", ".join(f"{key} {value}" for key, value in content["machine"].items()))
    for name, section in content.get("sections", {}).items():  # of benchmarks.gpu
        print(f"{name}: {section['outcome']}, {section['seconds']} s")
    print(stored_table(file))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all of benchmarks/results/")
    for file in parser.parse_args(argv).files or sorted(RESULTS.glob("*.json")):
        try:
            show(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            parser.error(f"{file}: cannot be read as the results of a benchmark ({why})")


if __name__ == "__main__":
    main()
