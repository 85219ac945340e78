"""Print the tables of benchmarks/README.md from stored results.

python -m benchmarks.tables                      all of benchmarks/results/
python -m benchmarks.tables outputs/bench/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.common import Row, table

RESULTS = Path(__file__).parent / "results"


def stored_table(file: Path) -> str:
    """Return the rows of a JSON file written by a benchmark as a Markdown table."""
    return table([Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]])


def main() -> None:
    for file in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        print(f"\n{file.stem}\n" + ", ".join(f"{key} {value}" for key, value in content["machine"].items()))
        for name, section in content.get("sections", {}).items():  # of benchmarks.gpu
            print(f"{name}: {section['outcome']}, {section['seconds']} s")
        print(stored_table(file))


if __name__ == "__main__":
    main()
