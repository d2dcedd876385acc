"""Check the English of pages, docstrings and messages: short sentences, plain words. See ``make lint``."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
MAX_WORDS = 30
_PLAINER = tomllib.loads((ROOT / "dev" / "prose.toml").read_text(encoding="utf-8"))["plainer"]
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_INLINE = {"softbreak": "\n", "hardbreak": "\n", "html_inline": " ", "code_inline": "X"}
"""What stands for a part of a text that is no text."""
_PHRASES = {re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE): plain for phrase, plain in _PLAINER.items()}


class Text(NamedTuple):
    """A paragraph, heading or cell without its code.

    :ivar line: its first line in the file.
    """

    line: int
    words: str


def texts(markdown: str, line: int = 1) -> Iterator[Text]:
    """Return the texts of a page, or of a docstring that starts in a line of its file."""
    for token in _MARKDOWN.parse(markdown):
        if token.type == "inline" and token.map:
            plain = "".join(_INLINE.get(part.type, part.content) for part in token.children or ())
            yield Text(line + token.map[0], plain)


def docstrings(source: str) -> Iterator[Text]:
    """Return the texts of a module's docstrings. Each field is a text."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if docstring := ast.get_docstring(node):
            for text in texts(docstring, node.body[0].lineno):
                for field in re.finditer(r"(?:^:[^:\n]*:)?(.*?)(?=\n:|\Z)", text.words, re.DOTALL | re.MULTILINE):
                    yield Text(text.line + text.words.count("\n", 0, field.start(1)), field[1])


def literals(source: str) -> Iterator[Text]:
    """Return the strings in a module's code, such as messages, with an X for each value."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.JoinedStr):
            yield Text(node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            nodes.extend(ast.iter_child_nodes(node))


def problems(text: Text) -> Iterator[tuple[int, str]]:
    """Return the problems of a text, with their lines."""
    for sentence in re.finditer(r"\S.*?(?:[.!?](?=\s)|\Z)", text.words, re.DOTALL):
        if (count := len(re.findall(r"\w\S*", sentence[0]))) > MAX_WORDS:
            yield _line(text, sentence), f"a sentence of {count} words (at most {MAX_WORDS}): {sentence[0][:50]!r}"
    for phrase, plain in _PHRASES.items():
        for match in phrase.finditer(text.words):
            yield _line(text, match), f"{match[0]!r}; write: {plain}"


def _line(text: Text, match: re.Match[str]) -> int:
    return text.line + text.words.count("\n", 0, match.start())


def read(path: Path) -> Iterator[Text]:
    """Return the texts of a page, or the docstrings and strings of a module."""
    source = path.read_text(encoding="utf-8")
    return chain(docstrings(source), literals(source)) if path.suffix == ".py" else texts(source)


def main() -> int:
    """Print the problems of all files. Return the exit status."""
    pages = chain(ROOT.glob("*.md"), (path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts))
    found = False
    for path in sorted(chain(pages, ROOT.glob("openmarkets_provider/**/*.py"))):
        for text in read(path):
            for line, problem in problems(text):
                print(f"{path.relative_to(ROOT)}:{line}: {problem}")
                found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
