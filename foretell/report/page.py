"""The page of a report and its plots, as SVG drawn by hand: a few kilobytes, no script, no network. Knows no results,
only points.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 64, 16, 14, 34
COLOURS = 4
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>
:root{{--ink:#1c2430;--dim:#667085;--line:#e4e7ec;--page:#f7f8fa;--card:#fff;--s0:#2563eb;--s1:#d97706;--s2:#059669;--s3:#9333ea}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6e9ef;--dim:#98a2b3;--line:#2c3442;--page:#11151c;--card:#181e28;
--s0:#6ea0ff;--s1:#f5a84b;--s2:#4cc79a;--s3:#c08bff}}}}
body{{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;max-width:1360px;
padding:28px}}h1{{font-size:22px;margin:0 0 18px}}h2{{font-size:14px;margin:0 0 8px;font-weight:600}}
.grid{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:16px;margin-bottom:16px}}
.card{{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;overflow-x:auto}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:4px 14px 4px 0;vertical-align:top;
font-variant-numeric:tabular-nums}}td:first-child{{color:var(--dim);white-space:nowrap}}tr+tr td{{border-top:1px solid
var(--line)}}.wide{{grid-column:1/-1}}svg{{width:100%;height:auto;display:block}}text{{fill:var(--dim);font-size:11px}}
.axis{{stroke:var(--line)}}.c0{{stroke:var(--s0)}}.f0{{fill:var(--s0)}}.c1{{stroke:var(--s1)}}.f1{{fill:var(--s1)}}.c2{{stroke:var(--s2)}}.f2{{fill:var(--s2)}}.c3{{stroke:var(--s3)}}.f3{{fill:var(--s3)}}
.curve{{fill:none;stroke-width:2;stroke-linejoin:round}}.bar{{opacity:.55}}.bar:hover{{opacity:1}}
.key{{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}}
.k0{{background:var(--s0)}}.k1{{background:var(--s1)}}.k2{{background:var(--s2)}}.k3{{background:var(--s3)}}
.note{{color:var(--s1);margin:8px 0 0}}</style>
<h1>{title}</h1><div class="grid">{tables}</div><div class="grid">{plots}</div></html>
"""

Points = list[tuple[float, float]]


def page(title: str, tables: Sequence[str], plots: Sequence[str]) -> str:
    """The whole file: cards of tables first, cards of plots below."""
    return _PAGE.format(title=escape(title), tables="".join(tables), plots="".join(plots))


def card(title: str, body: str, style: str = "card") -> str:
    return f'<section class="{style}"><h2>{title}</h2>{body}</section>'


def row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"


def line_chart(lines: Sequence[Points], x_label: Callable[[float], str], y_label: Callable[[float], str]) -> str:
    """Lines over a common x axis, both axes from zero; `x_label` and `y_label` write a tick's value."""
    end = max((x for line in lines for x, _ in line), default=0.0) or 1.0
    highest = max((y for line in lines for _, y in line), default=0.0) * 1.05 or 1.0
    plot = Plot((0, end), (0, highest))
    body = [plot.x_tick(x, x_label(x)) for x in [0.0, *steps(end)]]
    body += [plot.y_tick(y, y_label(y)) for y in [0.0, *steps(highest)]]
    return plot.svg(body + [plot.line(number, line) for number, line in enumerate(lines)])


class Plot:
    """Maps values to the drawing's coordinates and makes its marks."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / ((high - low) or 1) * (_W - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _H - _BOTTOM - (value - low) / ((high - low) or 1) * (_H - _TOP - _BOTTOM)

    def x_tick(self, value: float, label: str) -> str:
        x = f"{self.x(value):.1f}"
        line = f'<line class="axis" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_H - _BOTTOM}"/>'
        return f'{line}<text x="{x}" y="{_H - _BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'

    def y_tick(self, value: float, label: str) -> str:
        y = self.y(value)
        line = f'<line class="axis" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return f'{line}<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'

    def line(self, number: int, points: Points) -> str:
        """A line, with dots where the points are few enough to be seen."""
        places = [(f"{self.x(x):.1f}", f"{self.y(y):.1f}") for x, y in points]
        colour = number % COLOURS
        dots = [f'<circle class="f{colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places] if len(places) < 10 else []
        path = " ".join(f"{x},{y}" for x, y in places)
        return f'<polyline class="curve c{colour}" points="{path}"/>{"".join(dots)}'

    def bar(self, number: int, left: float, right: float, top: float, told: str) -> str:
        x, width, y = self.x(left), self.x(right) - self.x(left), self.y(top)
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 1):.1f}" height="{self.y(0) - y:.1f}"'
        return f'<rect class="bar f{number % COLOURS}" {shape}><title>{escape(told)}</title></rect>'

    def svg(self, body: Sequence[str]) -> str:
        return f'<svg viewBox="0 0 {_W} {_H}" role="img">{"".join(body)}</svg>'


def ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 1 else f"{value * 1000:.3g} µs"


def span(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of a logarithmic axis that holds `values` with a little room."""
    low, high = max(min(values), 1e-6), max(values)
    return low / 1.15, max(high, low) * 1.15


def decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 … inside the bounds; only the tens where that would be crowded."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [value for value in fine if low <= value <= high]
    coarse = [10.0**power for power in powers if low <= 10.0**power <= high]
    return coarse if len(found) > 8 else found


def steps(highest: float) -> list[float]:
    """Round values above zero up to `highest`, three to seven of them."""
    unit = 10.0 ** math.floor(math.log10(highest)) if highest > 0 else 1.0
    step = next(unit * part for part in (2, 1, 0.5, 0.2, 0.1) if highest / (unit * part) >= 3)
    return [round(step * number, 12) for number in range(1, int(highest / step) + 1)]
