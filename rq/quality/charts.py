"""Charts as inline SVG: lines over steps, stacked bars over months, values with their intervals.

Colours are the CSS classes s0, s1, ... of the page, so that a chart follows its light or dark theme. Every text
that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 520, 230
SMALL_WIDTH, SMALL_HEIGHT = 370, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 34
COLOURS = 5  # classes s0..s4 of the style sheet; more series take them again


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and the names of its series."""

    caption: str
    chart: Markup
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """One named series of (x, y) points; `dots` marks the points (sparse series)."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Interval:
    """A value with its interval; `strong` rows are models, the others baselines."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover [low, high].

    >>> nice_ticks(0.0, 0.23, 5)
    [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.75 * raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A short axis label: 12,000, 0.05, 3e-4.

    >>> number(12000.0), number(0.05), number(0.0003), number(0.0)
    ('12,000', '0.05', '3e-4', '0')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Frame:
    """The plotting area of one chart: maps values to pixels and draws axes. The ticks span y."""

    def __init__(
        self, x0: float, x1: float, y_ticks: Sequence[float], *, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        self.x0, self.x1 = x0, x1 if x1 > x0 else x0 + 1
        self.y_ticks, self.width, self.height = y_ticks, width, height

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def axes(self, x_ticks: Sequence[tuple[float, str]], x_label: str = "") -> list[str]:
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
        bottom = self.height - BOTTOM
        for value, label in x_ticks:
            parts.append(
                f'<text x="{self.x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{escape(label)}</text>'
            )
        if x_label:
            middle = (LEFT + self.width - RIGHT) / 2
            parts.append(
                f'<text x="{middle}" y="{self.height - 4}" text-anchor="middle">{escape(x_label)}</text>'
            )
        return parts


def svg(parts: Sequence[str], *, label: str, height: int = HEIGHT, width: int = WIDTH) -> Markup:
    """An accessible, scalable figure."""
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'
    )


def line_chart(lines: Sequence[Line], *, label: str, x_label: str = "step") -> Markup:
    """Lines over a common x axis; the y axis starts at 0 where that wastes less than half of it."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = min(ys), max(ys)
    if 0 < low < high / 2:
        low = 0.0
    frame = Frame(min(xs), max(xs), nice_ticks(low, high), width=SMALL_WIDTH, height=SMALL_HEIGHT)
    inside = [tick for tick in nice_ticks(frame.x0, frame.x1, 5) if frame.x0 <= tick <= frame.x1]
    parts = frame.axes([(tick, number(tick)) for tick in inside], x_label)
    for place, line in enumerate(lines):
        index = place % COLOURS
        points = [(frame.x(x), frame.y(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{index}" points="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="dot s{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    return svg(parts, label=label, width=SMALL_WIDTH, height=SMALL_HEIGHT)


def stacked_bars(
    names: Sequence[str], stacks: Sequence[Sequence[float]], *, label: str, every: int
) -> Markup:
    """One bar per name, its stacks on top of each other; `stacks[s][n]`. Every `every`-th name is written."""
    totals = [sum(stack[n] for stack in stacks) for n in range(len(names))]
    frame = Frame(0, len(names), nice_ticks(0, max(totals, default=1) or 1))
    parts = frame.axes([(n + 0.5, name) for n, name in enumerate(names) if n % every == 0])
    wide = frame.x(1) - frame.x(0)
    gap = min(1.5, wide * 0.15)
    for n in range(len(names)):
        base = 0.0
        for index, stack in enumerate(stacks):
            if stack[n]:
                top, bottom = frame.y(base + stack[n]), frame.y(base)
                parts.append(
                    f'<rect class="bar s{index}" x="{frame.x(n) + gap / 2:.2f}" y="{top:.1f}" '
                    f'width="{wide - gap:.2f}" height="{bottom - top:.1f}"/>'
                )
                base += stack[n]
    return svg(parts, label=label)


def interval_chart(rows: Sequence[Interval], *, label: str) -> Markup:
    """A dot and a bar per row over a common axis from 0."""
    row_height, left, right = 26, 128, 62
    height = len(rows) * row_height + 34
    ticks = nice_ticks(0, max(row.high for row in rows) or 1, 5)

    def x(value: float) -> float:
        return left + value / ticks[-1] * (WIDTH - left - right)

    bottom = len(rows) * row_height + 6
    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    for index, row in enumerate(rows):
        y = 6 + index * row_height + row_height / 2
        kind = "s0" if row.strong else "muted"
        name = row.label if len(row.label) <= 19 else row.label[:18] + "…"
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(
            f'<line class="span {kind}" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle class="dot {kind}" cx="{x(row.value):.1f}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{WIDTH - right + 10}" y="{y + 4:.1f}">{row.value:.4f}</text>')
    return svg(parts, label=label, height=height)


def point_map(groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, label: str) -> Markup:
    """Points without axes in one scale for both directions; groups: (CSS colour, points). One path per group."""
    points = [point for _, members in groups for point in members]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    room = min(SMALL_WIDTH / ((max(xs) - min(xs)) or 1.0), SMALL_WIDTH / ((max(ys) - min(ys)) or 1.0)) * 0.94
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    wide = min(7.0, max(1.6, 130 / math.sqrt(len(points))))

    def place(x: float, y: float) -> str:
        return f"{SMALL_WIDTH / 2 + (x - middle_x) * room:.1f} {SMALL_WIDTH / 2 - (y - middle_y) * room:.1f}"

    parts = []
    for colour, members in groups:
        # A line of length zero with round ends is a dot: far shorter than a circle element per point.
        path = "".join(f"M{place(x, y)}h0" for x, y in members)
        parts.append(
            f'<path d="{path}" stroke="{escape(colour, quote=True)}" stroke-width="{wide:.1f}" stroke-linecap="round"/>'
        )
    return svg(parts, label=label, width=SMALL_WIDTH, height=SMALL_WIDTH)
