"""The pages of the documentation, and the blocks of code on them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)])


class Block(NamedTuple):
    """A fenced block.

    :ivar page: its file, from the top of the repository.
    :ivar line: its first line.
    :ivar kind: the word after the fence.
    """

    page: str
    line: int
    kind: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether pytest is what runs it."""
        return (
            self.kind == "python" and re.search(r"^ *def test_|\(StoreContract\)", self.text, re.MULTILINE) is not None
        )

    @property
    def where(self) -> str:
        """Name it in the words of an error."""
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = path.read_text(encoding="utf-8")
    page = path.relative_to(ROOT).as_posix()
    fences = re.finditer(r"^( *)```([^\n`]*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [
        Block(page, text.count("\n", 0, each.start()) + 1, each[2].strip(), textwrap.dedent(each[3])) for each in fences
    ]


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
