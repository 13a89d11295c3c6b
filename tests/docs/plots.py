"""Which pictures of the documents are made from simulations? SVG, the same to the byte whenever they are made."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pygal
from pygal.style import Style

from tests.docs import bursts, slow_router

# pygal puts a finder for its own plugins into the import system, by an interface that Python has given up: each import
# of a module that does not exist would warn from then on.
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("pygal")]

# Colours that the colour-blind can tell apart (Okabe and Ito); grey is for what is not to be passed.
_ORANGE, _BLUE, _GREEN, _GREY = "#D55E00", "#0072B2", "#009E73", "#555555"
_COLOURS = (_ORANGE, _BLUE, _GREEN)
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_SOLID: dict[str, str] = {}
_DASHED = {"dasharray": "7,5"}
_DOTTED = {"dasharray": "2,4"}
# pygal writes the day into a comment, and a script for what a picture in a page cannot do.
_DROPPED = re.compile(r"<!--.*?-->|<script.*?</script>", re.DOTALL)
_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """`name` is None for a line that the legend leaves out."""

    name: str | None
    values: Sequence[float]
    colour: str
    stroke: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """What the axes are called; `every` so many places of the lower one have their label."""

    x: str
    labels: Sequence[str]
    every: int
    y: str


def plots() -> dict[str, str]:
    """Each picture by its path below docs/."""
    pictures = {
        "burst-window": _burst_window,
        "burst-rate": _burst_rate,
        "burst-tokens": _burst_tokens,
        "overload-first-byte": _overload_first_byte,
        "overload-admitted": _overload_admitted,
    }
    return {f"images/{name}.svg": draw(name) for name, draw in pictures.items()}


def _burst_window(name: str) -> str:
    axes = _time_of_day("requests admitted in the last 60 minutes")
    lines = [*_hourly(bursts.HOUR), _ceiling("ceiling", bursts.CEILING, axes)]
    return _drawn(name, "A burst around the full hour passes a calendar hour's ceiling twice", axes, lines)


def _burst_rate(name: str) -> str:
    axes = _time_of_day("requests admitted in each minute")
    lines = [*_hourly(bursts.MINUTE), _ceiling("ceiling, spread evenly", bursts.CEILING / 60, axes)]
    return _drawn(name, "With a burst of its own, a limit gives room back evenly", axes, lines)


def _hourly(span_ms: int) -> list[_Line]:
    return [
        _Line(
            name=name,
            values=[bursts.in_last(passed, minute, span_ms) for minute in _MINUTES],
            colour=colour,
            stroke=_SOLID,
        )
        for (name, passed), colour in zip(bursts.requests().items(), _COLOURS, strict=True)
    ]


def _burst_tokens(name: str) -> str:
    seconds = range(0, bursts.TOKENS_FOR, bursts.SECOND)
    axes = _seconds(len(seconds), "thousand tokens of answers begun in the last 60 s")
    lines = [
        _Line(
            name=charged,
            values=[bursts.in_last(passed, second, bursts.MINUTE) / 1000 for second in seconds],
            colour=colour,
            stroke=_SOLID,
        )
        for (charged, passed), colour in zip(bursts.answers().items(), (_BLUE, _ORANGE), strict=True)
    ]
    lines.append(_ceiling("ceiling", bursts.TOKEN_CEILING / 1000, axes))
    return _drawn(name, "Charged only after the answer, a token limit is passed by all that run", axes, lines)


def _overload_first_byte(name: str) -> str:
    axes = _seconds(slow_router.SECONDS, "first byte after seconds (median, log scale)")
    lines = [
        _Line(name=label, values=[late_ms / _MS for late_ms in course.first_byte_ms], colour=colour, stroke=_SOLID)
        for label, course, colour in (
            ("without adaptive admission", slow_router.course(adaptive=False), _ORANGE),
            ("with adaptive admission", slow_router.course(adaptive=True), _BLUE),
        )
    ]
    lines.append(_ceiling("target", slow_router.TARGET_MS / _MS, axes))
    title = "Adaptive admission brings an overloaded Router back to its target"
    return _drawn(name, title, axes, lines, logarithmic=True, y_labels=[0.3, 1, 3, 10, 30, 100])


def _overload_admitted(name: str) -> str:
    axes = _seconds(slow_router.SECONDS, "requests a second (dotted: offered)")
    course = slow_router.course(adaptive=True)
    plans = list(zip(slow_router.PLANS.items(), _COLOURS, strict=True))
    lines = [
        _Line(
            name=f"{plan}, admitted",
            values=[passed[priority] for passed in course.admitted],
            colour=colour,
            stroke=_SOLID,
        )
        for (priority, plan), colour in plans
    ]
    lines += [
        _Line(
            name=None,
            values=[slow_router.offered(second)[priority] for second in range(slow_router.SECONDS)],
            colour=colour,
            stroke=_DOTTED,
        )
        for (priority, plan), colour in plans
    ]
    return _drawn(name, "Under overload the lowest plan is shed first and the highest not at all", axes, lines)


_MINUTES = range(bursts.START + bursts.HOUR, bursts.END, bursts.MINUTE)


def _time_of_day(y: str) -> _Axes:
    labels = [f"{minute // bursts.HOUR}:{minute % bursts.HOUR // bursts.MINUTE:02}" for minute in _MINUTES]
    return _Axes(x="time of day", labels=labels, every=30, y=y)


def _seconds(count: int, y: str) -> _Axes:
    return _Axes(x="seconds", labels=[str(second) for second in range(count)], every=20, y=y)


def _ceiling(name: str, value: float, axes: _Axes) -> _Line:
    return _Line(name=name, values=[value] * len(axes.labels), colour=_GREY, stroke=_DASHED)


def _drawn(name: str, title: str, axes: _Axes, lines: Sequence[_Line], **scale: Any) -> str:
    chart = pygal.Line(
        title=title,
        x_title=axes.x,
        y_title=axes.y,
        x_labels=axes.labels,
        x_labels_major_every=axes.every,
        show_minor_x_labels=False,
        style=_style(tuple(line.colour for line in lines)),
        width=900,
        height=460,
        show_dots=False,
        show_x_guides=False,
        legend_at_bottom=True,
        legend_at_bottom_columns=3 if sum(line.name is not None for line in lines) == len(_COLOURS) else 2,
        truncate_legend=-1,
        truncate_label=-1,
        margin_bottom=30,
        js=(),
        **{"include_x_axis": not scale, **scale},
    )
    chart.uuid = name  # a new one each time, otherwise
    for line in lines:
        chart.add(line.name, line.values, stroke_style=line.stroke)
    return _DROPPED.sub("", chart.render(is_unicode=True)) + "\n"


def _style(colours: tuple[str, ...]) -> Style:
    return Style(
        background="white",
        plot_background="white",
        foreground="#333333",
        foreground_strong="#111111",
        foreground_subtle="#DDDDDD",
        guide_stroke_color="#E4E4E4",
        major_guide_stroke_color="#E4E4E4",
        stroke_width="2",
        guide_stroke_dasharray="1,0",
        major_guide_stroke_dasharray="1,0",
        opacity="1",
        font_family=_FONT,
        title_font_family=_FONT,
        label_font_family=_FONT,
        major_label_font_family=_FONT,
        legend_font_family=_FONT,
        title_font_size=15,
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=13,
        colors=colours,
    )
