"""The linter of prose finds long sentences and phrases, in pages, docstrings and messages, and names the line."""

from __future__ import annotations

import inspect

from dev import prose

LONG = " ".join(["word"] * 20)
PAGE = f"""# A title

A sentence that is short. Another
one that was told of.

{LONG}
{LONG}. Short.

- `{LONG} {LONG}` is code, and so is
  this:

  ```text
  told {LONG} {LONG}
  ```

| head | other |
|---|---|
| told | {LONG} {LONG} |
| {LONG}.<br>{LONG}. | |
"""


def found(texts) -> list[tuple[int, str]]:
    return [(line, problem.split()[0]) for text in texts for line, problem in prose.problems(text)]


def test_a_page_is_checked_without_its_code():
    assert found(prose.texts(PAGE)) == [(4, "'told';"), (6, "a"), (18, "'told';"), (18, "a")]


def test_docstrings_are_checked_field_by_field():
    source = inspect.cleandoc(
        f'''
        """It is told.

        {LONG}
        """

        def function(first, second):
            """Do it.

            :param first: {LONG}
            :param second: {LONG} told
            """
            told = {LONG!r}
        '''
    )
    assert found(prose.docstrings(source)) == [(1, "'told';"), (10, "'told';")]


def test_strings_in_code_are_checked_without_their_values_and_docstrings():
    source = inspect.cleandoc(
        f'''
        """It is told."""
        raise ValueError(
            f"{{told}} is wrong: {{told + 'by itself'}}. {LONG}"
            " {LONG}"
        )
        log.warning("%s is told.", told)
        '''
    )
    assert sorted(found(prose.literals(source))) == [(3, "a"), (6, "'told';")]
