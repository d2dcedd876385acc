"""Rows that stay when a file is rewritten."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from openmarkets_provider.landing.layout import Columns, Layout
from openmarkets_provider.query.rows import to_listing


def select_kept(
    stored: Iterable[Columns], new: Iterable[Columns], layout: Layout, securities: Collection[str] | None
) -> Iterator[Columns]:
    """Yield the stored rows that stay.

    :param new: rows that replace stored rows with the same key.
    :param securities: the securities whose rows stay, in full form; None for all. The data source is ignored, because
        rows of one query may have several.
    """
    names = [column.name for column in layout.columns]
    of_key, of_listing = ([names.index(name) for name in some] for some in (layout.key, ("security_code", "exchange")))
    listings = None if securities is None else set(map(to_listing, securities))

    def find(columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the number and the key of the rows of these securities."""
        keys, codes = (zip(*(columns[each] for each in some), strict=True) for some in (of_key, of_listing))
        for row, (key, (code, exchange)) in enumerate(zip(keys, codes, strict=True)):
            if listings is None or (str(code).upper(), str(exchange).upper()) in listings:
                yield row, key

    replaced = {key for columns in new for _, key in find(columns)}
    for columns in stored:
        if rows := [row for row, key in find(columns) if key not in replaced]:
            yield [[values[row] for row in rows] for values in columns]
