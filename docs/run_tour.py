"""Run the Python blocks of docs/tour.md in order, and write the output of each block below it.

python docs/run_tour.py            run all blocks, including the training: about five minutes on two CPU cores
python docs/run_tour.py --check    run the quick blocks; exit with code 1 if an output differs from the page
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

TOUR = Path(__file__).parent / "tour.md"
BLOCK = re.compile(r"```python( slow)?\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def run(text: str, with_slow: bool) -> str:
    """Return ``text`` with the new output below each block. Slow blocks run only if ``with_slow`` is True."""
    names: dict[str, object] = {}

    def updated(block: re.Match[str]) -> str:
        slow, code, _ = block.groups()
        if slow and not with_slow:
            return block[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(TOUR), "exec"), names)
        output = printed.getvalue()
        return f"```python{slow or ''}\n{code}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(updated, text)


def main() -> int:
    """Update or check the page, and return the exit code."""
    before = TOUR.read_text(encoding="utf-8")
    check = "--check" in sys.argv[1:]
    after = run(before, with_slow=not check)
    if not check:
        TOUR.write_text(after, encoding="utf-8")
    elif after != before:
        old, new = ({m[0] for m in BLOCK.finditer(text)} for text in (before, after))
        print("the output differs from docs/tour.md in:", *sorted(new - old), sep="\n\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
