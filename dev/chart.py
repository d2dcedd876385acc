"""A chart of daily bars: candlesticks with the volume below, one column for each security."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Bar = Mapping[str, Any]

UP, DOWN = "#1f77b4", "#d95f02"
"""Blue and orange, which people with red-green colour blindness can distinguish."""
INK, PALE, FAINT = "#333333", "#666666", "#e6e6e6"
BODY = 0.64
"""Width of a candle's body, in exchange days."""
MOST_DATES = 6


def draw(bars: Sequence[Bar], path: Path, title: str, note: str) -> None:
    """Draw bars as a PNG file.

    :param bars: rows of ``queries.time_series``, by security and then by day; prices in dollars.
    :param note: a line below the title.
    """
    traded = [bar for bar in bars if bar["open_price"] is not None]
    if not traded:
        raise ValueError("There is no bar with a price to draw.")
    columns = [list(of_one) for _, of_one in groupby(traded, itemgetter("security_code"))]
    # The same days for all, without gaps for weekends and holidays.
    days = sorted({bar["time_series_date"] for bar in traded})
    figure = Figure(figsize=(max(14, 5.2 * len(columns)), 6.4), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.05, rect=(0, 0.01, 1, 0.865))
    figure.text(0.012, 0.975, title, fontsize=15, fontweight="bold", color=INK, va="top")
    figure.text(0.012, 0.92, note, fontsize=10, color=PALE, va="top")
    axes = figure.subplots(2, len(columns), sharex=True, squeeze=False, height_ratios=(3.2, 1))
    for of_one, price, volume in zip(columns, *axes, strict=True):
        draw_security(of_one, days, price, volume)
    axes[0][0].set_ylabel("price, dollars", color=PALE)
    axes[1][0].set_ylabel("volume, shares", color=PALE)
    figure.savefig(path)


def draw_security(bars: Sequence[Bar], days: Sequence[date], price: Axes, volume: Axes) -> None:
    """Draw the bars of one security.

    :param days: all days of the axis, in order.
    """
    places = [days.index(bar["time_series_date"]) for bar in bars]
    opened, high, low, closed = (
        [float(bar[f"{name}_price"]) for bar in bars] for name in ("open", "high", "low", "close")
    )
    colours = [UP if last >= first else DOWN for first, last in zip(opened, closed, strict=True)]
    price.vlines(places, low, high, colors=colours, linewidth=1)
    heights = [abs(last - first) for first, last in zip(opened, closed, strict=True)]
    # The edge makes days visible whose close equals their open.
    price.bar(places, heights, BODY, list(map(min, opened, closed)), color=colours, edgecolor=colours, linewidth=0.8)
    volume.bar(places, [bar["total_volume"] or 0 for bar in bars], BODY, color=colours, alpha=0.55)
    first, last = bars[0], bars[-1]
    change = f"   {100 * (last['close_price'] / first['open_price'] - 1):+.1f} %" if first["open_price"] else ""
    moved = f"{first['open_price']:,.2f} \N{RIGHTWARDS ARROW} {last['close_price']:,.2f}{change}"
    price.set_title(f"{last['security_code']}   {moved}", loc="left", color=INK)
    price.yaxis.set_major_formatter(lambda value, _: f"{value:,.2f}")
    volume.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    weeks = [place for place, day in enumerate(days) if place == 0 or day.weekday() < days[place - 1].weekday()]
    labelled = weeks[:: -(-len(weeks) // MOST_DATES)]
    volume.set_xticks(labelled, [f"{days[place].day} {days[place]:%b}" for place in labelled])
    volume.set_xlim(-1, len(days))
    for axes in (price, volume):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color("#bbbbbb")
        axes.tick_params(length=0, pad=6, labelsize=9, colors=INK)
    price.spines["bottom"].set_visible(False)
    volume.tick_params(axis="x", length=3, color="#bbbbbb")
