"""Panels of curves as inline SVG, drawn by matplotlib without pyplot, so that no global backend is touched.

Colours are place-holders while matplotlib draws, and CSS variables in the result: the page decides what they look like
in light and in dark. Names of runs never pass through matplotlib (no glyph to miss, no mathtext to trip over): they are
legends in HTML, and tool tips in the SVG.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sibert.reporting.curves import Array, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

# The page defines as many colours; more runs share them, and the tool tips still tell them apart.
COLOURS = 8
_INK, _MUTED, _GRID, _PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _PAPER: "--card"}

# Values that span more than this factor get a logarithmic axis.
_LOGARITHMIC_SPAN = 20.0
_TICK_STEPS = (1, 2, 2.5, 5, 10)

_RC: dict[Any, Any] = {
    "svg.hashsalt": "sibert",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _MUTED,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "lines.linewidth": 1.5,
}

Style = Literal["solid", "faint", "dashed", "dotted", "dots"]

_LOOKS: dict[str, dict[str, Any]] = {
    "solid": {"solid_capstyle": "round"},
    "faint": {"linewidth": 0.8, "alpha": 0.3},
    "dashed": {"linestyle": (0, (4, 2.5)), "linewidth": 1.3},
    "dotted": {"linestyle": (0, (1, 2)), "linewidth": 1.5},
    "dots": {"linestyle": "none", "marker": "o", "markersize": 4, "markeredgecolor": _PAPER, "zorder": 3},
}


@dataclass(frozen=True)
class Line:
    """A curve to draw.

    Attributes:
        run: index of the run it belongs to, ``None`` if it belongs to all of them.
        label: what it is, plain text.
        x: abscissa [N].
        y: ordinate [N].
        style: how it looks; a dotted line is drawn across the whole panel at its last ordinate.
    """

    run: int | None
    label: str
    x: Array
    y: Array
    style: Style = "solid"


@dataclass(frozen=True)
class Panel:
    """Curves that share two axes.

    Attributes:
        unit: what the ordinate is and its unit.
        lines: the curves.
        from_zero: whether the ordinate starts at zero, and is linear therefore.
        top: upper end of the ordinate; ``None`` leaves it to the curves.
    """

    unit: str
    lines: Sequence[Line]
    from_zero: bool = False
    top: float | None = None


def colour_of(run: int) -> str:
    """CSS variable that holds the colour of the run of this index."""
    return f"--run-{run % COLOURS}"


def draw(key: str, title: str, panels: Sequence[Panel], x_label: str, names: Sequence[str]) -> str:
    """Draw panels above each other.

    Args:
        key: prefix of every id in the result, unique within the page.
        title: what screen readers say, plain text.
        panels: what to draw, from top to bottom.
        x_label: name of the abscissa that they share.
        names: what to call the runs in tool tips.

    Returns:
        An ``<svg>`` element: deterministic, without prologue, dates, scripts, or references to anything outside.
    """
    tips: dict[str, str] = {}
    with _canvas(height=2.9 if len(panels) == 1 else 1.75 * len(panels), rows=len(panels)) as (canvas, rows):
        for axes, panel in zip(rows, panels, strict=True):
            for line in panel.lines:
                _draw_line(axes, line, tips, names)
            axes.set_title(panel.unit)
            _scale_ordinate(axes, panel)
        _scale_abscissa(rows[-1], x_label)
        return _to_svg(canvas, key, title, tips)


def plain_number(value: float, _: object = None) -> str:
    """A number as a tick label, without mathtext: 0.02, 350, 20 000 (thin space) or 3·10⁻⁵."""
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else ""
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    if -3 <= exponent < 6:
        return f"{value:,.6g}".replace(",", "\u2009").replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.4g}".replace("-", "−")
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


@contextmanager
def _canvas(height: float, rows: int) -> "Iterator[tuple[MatplotlibFigure, list[Axes]]]":
    """A matplotlib figure of ``rows`` axes. Small, so that its text stays readable on a phone."""
    # matplotlib takes about a second to import: whoever only imports this package does not pay for it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as MatplotlibFigure

    with matplotlib.rc_context(_RC):
        canvas = MatplotlibFigure(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(canvas)
        yield canvas, list(canvas.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _placeholder(run: int | None) -> str:
    return _INK if run is None else f"#f000{run % COLOURS:02x}"


def _draw_line(axes: "Axes", line: Line, tips: dict[str, str], names: Sequence[str]) -> None:
    x, y = thin(line.x, line.y)
    look = dict(_LOOKS[line.style])
    if len(x) == 1 and line.style in ("solid", "dashed"):
        look |= {"marker": "o", "markersize": 4}  # one log entry makes no line
    key = f"tip-{len(tips)}"
    tips[key] = line.label if line.run is None else f"{names[line.run]}: {line.label}"
    if line.style == "dotted":
        axes.axhline(float(y[-1]), color=_placeholder(line.run), gid=key, **look)
    else:
        axes.plot(x, y, color=_placeholder(line.run), gid=key, **look)


def _scale_ordinate(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = np.concatenate([line.y for line in panel.lines])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    # The lowest tenth does not count: a schedule that ends at zero is a straight line and should look like one.
    usual_low = float(np.percentile(values, 10))
    if usual_low > 0 and high / usual_low > _LOGARITHMIC_SPAN and not panel.from_zero and panel.top is None:
        axes.set_yscale("log", nonpositive="mask")
        subs = (1.0, 3.0) if np.log10(high / values[values > 0].min()) < 3 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_TICK_STEPS))
        if panel.top is not None:
            axes.set_ylim(low - 0.05 * (panel.top - low), panel.top)
        elif panel.from_zero:
            axes.set_ylim(0.0, 1.08 * high if high > 0 else 1.0)
        elif high > 0 and high - low <= 1e-9 * high:
            axes.set_ylim(0.0, 1.6 * high)  # a constant: matplotlib would zoom into its last digit
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))


def _scale_abscissa(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=_TICK_STEPS, integer=label == "step"))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.set_xlabel(label)


def _to_svg(canvas: "MatplotlibFigure", key: str, title: str, tips: dict[str, str]) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', text)
    assert view_box is not None, "matplotlib writes a viewBox"
    # The page has the name space (HTML5 implies it), the one style rule, and no use for metadata.
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Every figure numbers its parts from one; ids must be unique within the page.
    body = re.sub(r'\bid="([^"]*)"', rf'id="{key}-\1"', body)
    body = body.replace("url(#", f"url(#{key}-").replace('xlink:href="#', f'href="#{key}-')
    body = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var({variable})")
    for run in range(COLOURS):
        body = body.replace(_placeholder(run), f"var({colour_of(run)})")
    body = re.sub(r"\n\s*", "\n", body).strip()
    # Last, so that no name of a run can be taken for any of the above.
    tip_of = re.compile(rf'<g id="{key}-(tip-\d+)">')
    body = tip_of.sub(lambda match: f"<g><title>{html.escape(tips[match[1]])}</title>", body)
    return (
        f'<svg class="plot" role="img" viewBox="{view_box[1]}" aria-labelledby="{key}-title">'
        f'<title id="{key}-title">{html.escape(title)}</title>\n{body}'
    )
