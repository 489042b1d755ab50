"""The report's charts: matplotlib drawings as inline SVG that takes its colours from the page.

Each colour is drawn as a marker value and replaced by the page's CSS variable of that name, and
text is left as text without a font, so that a chart follows the page into dark mode and print.
matplotlib is imported when the first chart is drawn, and its global state is left alone.
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from downpour.report.values import Point

INK, MUTED, HAIRLINE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000{number:02d}" for number in range(11, 17))
CSS_NAMES = {INK: "ink", MUTED: "muted", HAIRLINE: "hairline", PAPER: "paper"} | {
    marker: f"series-{number}" for number, marker in enumerate(SERIES, start=1)
}

NEEDLESS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<!--.*?-->",
        r"<style.*?</style>",  # would reach the whole page; report.css says the same
        r"<clipPath.*?</clipPath>",  # nothing is drawn outside the axes
        r' clip-path="[^"]*"',
        r" font-family: [^;\"]*;",
        r' transform="rotate\(-0 [^"]*"',
        r'(?<=<g) id="[^"]*"',
        r"<g/>",
        r"<defs>\s*</defs>",
    )
)

UNITS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))  # from where, size, name
WIDE, HALF = (1064.0, 250.0), (516.0, 230.0)  # px
MARGIN_PX = {"left": 48.0, "right": 50.0, "top": 12.0, "bottom": 34.0}
SPREAD_FROM = 60  # points that a noisy line must have for its spread to mean something
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": HAIRLINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "grid.color": HAIRLINE,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "text.color": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 7,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve: its points by rising x, and the number of its colour from 0."""

    points: Sequence[Point]
    color: int = 0
    is_noisy: bool = False  # draw the mean and the spread over a moving window, not each point


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """One calibration bin: mean score, mean label, and the latter's standard error."""

    predicted: float
    actual: float
    error: float


def curve_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    size: tuple[float, float] = HALF,
    from_zero: bool = False,
    boundaries: Sequence[float] = (),
    end_text: Callable[[float], str] | None = None,
) -> str:
    """Curves over x; `boundaries` are marked by dotted lines, a lone line's end by `end_text`.

    `title` is for readers that do not see the chart. Every line needs at least one point.
    """
    with _style(title):
        figure, axes = _figure(size)
        for x in boundaries:
            axes.axvline(x, color=HAIRLINE, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        for line in lines:
            x_end, y_end = _draw(axes, line, is_filled=from_zero and len(lines) == 1)
            if end_text is not None:
                _mark_end(axes, x_end, y_end, SERIES[line.color], end_text(y_end))
        axes.margins(x=0.01, y=0.12)
        if from_zero:
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
        _ticks(axes.xaxis, most=8, whole=True)
        _ticks(axes.yaxis)
        _label_x(axes, x_label)
        return _svg(figure, title)


def rates_chart(title: str, rates: Sequence[Rate]) -> str:
    """Actual over predicted rate with two standard errors, beside the diagonal."""
    with _style(title):
        figure, axes = _figure(HALF)
        predicted, actual = [r.predicted for r in rates], [r.actual for r in rates]
        spread = [2 * r.error for r in rates]
        top = max(max(predicted), *(a + e for a, e in zip(actual, spread, strict=True)), 1e-9)
        limit = min(1.0, 1.05 * top) if top <= 1 else 1.05 * top
        axes.plot([0, limit], [0, limit], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.vlines(
            predicted,
            [max(0.0, a - e) for a, e in zip(actual, spread, strict=True)],
            [a + e for a, e in zip(actual, spread, strict=True)],
            color=SERIES[0],
            linewidth=2,
            alpha=0.5,
        )
        axes.plot(predicted, actual, color=SERIES[0], linewidth=1, alpha=0.5)
        _dots(axes, predicted, actual, SERIES[0])
        axes.set_xlim(-0.015 * limit, 1.015 * limit)
        axes.set_ylim(-0.02 * limit, 1.06 * limit)
        _ticks(axes.xaxis)
        _ticks(axes.yaxis)
        _label_x(axes, "predicted rate")
        return _svg(figure, title)


def gaps_chart(title: str, rates: Sequence[Rate]) -> str:
    """Actual minus predicted rate of each bin in percentage points, from low to high score."""
    with _style(title):
        figure, axes = _figure(HALF)
        places = np.arange(1, len(rates) + 1)
        gaps = 100 * np.array([r.actual - r.predicted for r in rates])
        colors = [SERIES[0] if gap >= 0 else SERIES[1] for gap in gaps]
        axes.bar(places, gaps, width=0.62, color=colors)
        axes.axhline(0, color=MUTED, linewidth=1)
        reach = max(1.15 * float(np.abs(gaps).max()), 0.1)
        axes.set_ylim(-reach, reach)
        axes.set_xlim(0.3, len(rates) + 0.7)
        _ticks(axes.yaxis, sign=True)
        _ticks(axes.xaxis, whole=True)
        _label_x(axes, "bin")
        return _svg(figure, title)


def _style(title: str) -> AbstractContextManager[None]:
    """matplotlib's own defaults and ours, whatever the user has set; ids are salted by `title`."""
    import matplotlib.style

    return matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": title}])


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    left, right = MARGIN_PX["left"] / width, 1 - MARGIN_PX["right"] / width
    bottom, top = MARGIN_PX["bottom"] / height, 1 - MARGIN_PX["top"] / height
    return figure, figure.add_axes((left, bottom, right - left, top - bottom))


def _draw(axes: Axes, line: Line, *, is_filled: bool) -> Point:
    """Draw one line and give its end."""
    color = SERIES[line.color % len(SERIES)]
    x, y = np.array(line.points, dtype=np.float64).T
    if line.is_noisy and len(x) >= SPREAD_FROM:
        x, y, low, high = moving_spread(x, y)
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    else:
        x, y = _thinned(x, y)
    axes.plot(x, y, color=color, linewidth=2)
    if is_filled:
        axes.fill_between(x, y, color=color, alpha=0.1, linewidth=0)
    if len(x) <= 30:
        _dots(axes, x, y, color)
    return float(x[-1]), float(y[-1])


def moving_spread(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], num_places: int = 240
) -> tuple[np.ndarray[Any, Any], ...]:
    """Mean, 10 % and 90 % quantile of y within 1/50 of the points around `num_places` of them.

    Arrays in and out are float64, [n] and four of [min(n, num_places)]: x, mean, low, high.
    """
    places = np.unique(np.linspace(0, len(x) - 1, num_places).astype(np.int64))
    half = max(3, len(x) // 100)
    windows = [y[max(0, place - half) : place + half + 1] for place in places]
    means = np.array([window.mean() for window in windows])
    low, high = np.array([np.quantile(window, (0.1, 0.9)) for window in windows]).T
    return x[places], means, low, high


def _thinned(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], num_places: int = 400
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    places = np.unique(np.linspace(0, len(x) - 1, num_places).astype(np.int64))
    return x[places], y[places]


def _dots(axes: Axes, x: Any, y: Any, color: str) -> None:
    axes.plot(
        x, y, "o", color=color, markersize=7.5, markeredgecolor=PAPER, markeredgewidth=1.5, zorder=3
    )


def _mark_end(axes: Axes, x: float, y: float, color: str, text: str) -> None:
    _dots(axes, [x], [y], color)
    axes.annotate(
        text, (x, y), xytext=(8, 0), textcoords="offset points", va="center", color=INK
    ).set_fontweight("bold")


def _label_x(axes: Axes, text: str) -> None:
    """The axis' name, small, under the right end of the axis, in line with its numbers."""
    axes.annotate(
        text,
        (1, 0),
        xycoords="axes fraction",
        xytext=(48, -7),
        textcoords="offset points",
        ha="right",
        va="top",
        style="italic",
    )


def _ticks(axis: Any, *, most: int = 5, whole: bool = False, sign: bool = False) -> None:
    """Round numbers within the axis' limits, all with as many decimals; set the limits before."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    locator = MaxNLocator(nbins=most, integer=whole, steps=[1, 2, 2.5, 5, 10])
    places = [place for place in locator.tick_values(low, high) if low <= place <= high]
    axis.set_ticks(places, labels=tick_texts(places, sign=sign))


def tick_texts(places: Sequence[float], *, sign: bool = False) -> list[str]:
    """The numbers of one axis in one unit (k, M, G) and with as few decimals as tell them apart."""
    largest = max(map(abs, places), default=0.0)
    if largest >= 1e15:
        return [f"{place:.3g}" for place in places]
    size, unit = next(((s, u) for start, s, u in UNITS if largest >= start), (1.0, ""))
    gap = min((b - a for a, b in pairwise(places)), default=largest) / size
    decimals = next((d for d in range(7) if abs(round(gap, d) - gap) <= gap / 1000), 7)
    texts = [f"{place / size:{'+' if sign else ''},.{decimals}f}{unit}" for place in places]
    return ["0" if place == 0 else text for place, text in zip(places, texts, strict=True)]


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return inline_svg(buffer.getvalue(), title)


def inline_svg(document: str, title: str) -> str:
    """A matplotlib SVG document as an element for the page: small, themed and named."""
    svg = document[document.index("<svg") :]
    for needless in NEEDLESS:
        svg = needless.sub("", svg)
    # Older matplotlibs put size and family into one `font`.
    svg = re.sub(r"\bfont: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'( (?:d|x|y|points)=")([^"]*)"', _rounded, svg)
    for marker, name in CSS_NAMES.items():
        svg = svg.replace(marker, f"var(--{name})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    head = f'<svg {view_box[0]} role="img" aria-label="{html.escape(title)}">'
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"^<svg[^>]*>", lambda _: head, svg)).strip()


def _rounded(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"(\.\d)\d+", r"\1", match[2]).replace("\n", "") + '"'
