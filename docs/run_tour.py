"""Run the Python of docs/tour.md, block after block, and write under each what it printed.

python docs/run_tour.py            all of it, with the training: some five minutes on two CPU cores
python docs/run_tour.py --check    the quick blocks: exit code 1 if one prints something else than stands there
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

TOUR = Path(__file__).parent / "tour.md"
_BLOCK = re.compile(r"```python( slow)?\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def run(text: str, with_slow: bool) -> str:
    """``text`` with the output of each block under it; of slow blocks, unless ``with_slow``, what stood there."""
    names: dict[str, object] = {}

    def fresh(block: re.Match[str]) -> str:
        slow, code, _ = block.groups()
        if slow and not with_slow:
            return block[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(TOUR), "exec"), names)
        output = printed.getvalue()
        return f"```python{slow or ''}\n{code}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return _BLOCK.sub(fresh, text)


def main() -> int:
    """The exit code."""
    before = TOUR.read_text(encoding="utf-8")
    check = "--check" in sys.argv[1:]
    after = run(before, with_slow=not check)
    if not check:
        TOUR.write_text(after, encoding="utf-8")
    elif after != before:
        old, new = ({m[0] for m in _BLOCK.finditer(text)} for text in (before, after))
        print("other output than in docs/tour.md:", *sorted(new - old), sep="\n\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
