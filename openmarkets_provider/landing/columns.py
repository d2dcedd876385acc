"""The columns of a query that go into a table, and their names there. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.layout import Columns, Layout, layout_of
from openmarkets_provider.landing.modes import Coverage
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import Query

LOAD_ID = "load_id"
"""The column that identifies the load of a row, with mode ``append``."""
LOAD_ROW = "load_row"
"""The column of a staging table with the number of a row, from 1."""
_SUBJECT = ("security_code", "exchange", "data_source", "account_code")
_NAME = re.compile(r"""[^\s"'`\[\]]+""")


class Choice:
    """The columns that are loaded: the selected ones, the key, and those by which a range is replaced.

    :param layout: of the query.
    :param names: names in the table by column; None for all columns with their own names.
    :ivar layout: of the table.
    :raises OpenmarketsQueryError: the query has no such column, or two would have the same name.
    """

    def __init__(self, layout: Layout, names: Mapping[str, str] | None = None) -> None:
        self._names = dict(names or {})
        self._check(layout)
        always = {*layout.key, layout.time, *_SUBJECT}
        numbered = enumerate(layout.columns)
        chosen = [(i, each) for i, each in numbered if names is None or each.name in always or each.name in names]
        self._numbers = [number for number, _ in chosen]
        columns = tuple(each._replace(name=self._rename(each.name)) for _, each in chosen)
        self.layout = replace(layout, columns=columns, time=layout.time and self._rename(layout.time))
        taken = [each.name for each in columns]
        double = next(
            (name for name in taken if taken.count(name) > 1 or (names and name in (LOAD_ID, LOAD_ROW))), None
        )
        if double:
            raise OpenmarketsQueryError(
                f"columns: {double!r} would name two columns, or is a column that the load adds. The columns of "
                "the key are always loaded."
            )

    def take(self, values: Columns) -> Columns:
        """Return the values of the columns that are loaded."""
        return [values[number] for number in self._numbers]

    def cover(self, coverage: Coverage) -> Coverage:
        """Return what is replaced, by the names in the table."""
        return coverage._replace(
            time=self._rename(coverage.time), columns=tuple(self._rename(name) for name in coverage.columns)
        )

    def _rename(self, name: str) -> str:
        return self._names.get(name, name)

    def _check(self, layout: Layout) -> None:
        known = [each.name for each in layout.columns]
        for name in self._names:
            if name not in known:
                close = get_close_matches(name, known, 1)
                advice = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(known):.1000}."
                raise OpenmarketsQueryError(f"columns: {name!r} is not a column of {layout.name}; {advice}")


def check_columns(columns: Mapping[str, str] | None, query: Query) -> None:
    """Refuse names of columns that do not go with a query. A template is not checked.

    :raises ValueError: it is not a dict of names.
    :raises OpenmarketsQueryError: see :class:`Choice`.
    """
    if columns is None:
        return
    if not isinstance(columns, dict) or not columns or not all(map(_is_name, [*columns, *columns.values()])):
        raise ValueError(
            'columns must be a dict of names without quotes and spaces, such as {"close_price": "close"}, not '
            f"{columns!r:.200}."
        )
    if is_literal(query) and isinstance(query, dict):
        Choice(layout_of(query), columns)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
