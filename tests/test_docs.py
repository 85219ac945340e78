"""The documentation: the README stays short, links and paths exist, and the commands parse."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPO
from isonet import load_cfg
from isonet.extras import EXTRAS, install

PAGES = sorted(
    [*REPO.glob("*.md"), *(page for name in ("benchmarks", "docs", "isonet") for page in (REPO / name).rglob("*.md"))]
)
SCRIPTS = ("train.py", "test.py", "flopscount_iso.py")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
NAMED = re.compile(r"\b(?:isonet|tests|docs|benchmarks|configs)/[\w/-]+\.(?:py|md|yaml|sbatch|png)\b")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the headings of ``page``."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_program(word: str) -> bool:
    return word in SCRIPTS or word.startswith("isonet.tools.")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of this project in a code block of ``page``, or in a code span with options."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^(?: {4}|\$ )(.+)$", text, re.MULTILINE)
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if " --cfg " in span or " --ckpt " in span]
    for line in [*blocks, *spans]:
        if not re.search(rf"(?:python|torchrun).*(?:{'|'.join(SCRIPTS)}|-m isonet\.tools)", line):
            continue
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|", ">"):
                words.append(word)
            else:
                if any(is_program(word) for word in words):
                    yield words
                words = []


COMMANDS = sorted({shlex.join(words) for page in PAGES for words in commands(page)})


def test_the_readme_is_two_screens():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_and_paths_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(FENCED.sub("", text)):
        if re.match(r"\w+:", link):  # another site
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    missing = [name for name in NAMED.findall(text) if not (REPO / name).exists()]
    assert not missing


def test_the_pages_have_commands_of_every_kind():
    used = {word for command in COMMANDS for word in shlex.split(command)}
    assert used >= {
        *SCRIPTS,
        "isonet.tools.shards",
        "isonet.tools.sweep",
        "isonet.tools.predict",
        "isonet.tools.export",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_known_options_and_keys(command):
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if is_program(word))
    name = {"isonet.tools.sweep": "isonet.tools.sweep.__main__"}.get(words[at], words[at].removesuffix(".py"))
    args = importlib.import_module(name).parse_args(words[at + 1 :])  # exits if an option is unknown
    if words[at] in SCRIPTS and args.cfg:
        load_cfg(REPO / args.cfg, args.opts)  # raises if a key is unknown


def test_no_command_installs_a_package_that_is_in_no_index():
    """In the index, ``isonet`` is another package or missing. Messages name the packages of an extra instead."""
    for page in [*PAGES, *(REPO / "isonet").rglob("*.py")]:
        if page.name != "extras.py":
            assert not re.search(r"pip install ['\"]?isonet", page.read_text(encoding="utf-8")), page
    for extra, packages in EXTRAS.items():
        assert shlex.split(install(extra)) == ["pip", "install", *packages]
