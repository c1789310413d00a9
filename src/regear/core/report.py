"""Reports: one HTML file with its tables and plots inside, nothing loaded from elsewhere."""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from regear.core.files import write_text

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2433}
h1{font-size:1.6rem} h2{font-size:1.2rem;margin-top:2rem} p.note{color:#55607a}
table{border-collapse:collapse;margin:.5rem 0} th,td{padding:.25rem .8rem;border-bottom:1px solid #dde2ec}
td{text-align:right;font-variant-numeric:tabular-nums} th:first-child,td:first-child{text-align:left}
svg{max-width:100%;height:auto}
"""
STYLE_OF_PLOTS: Any = {"svg.hashsalt": "regear", "svg.fonttype": "path", "font.size": 10}
COLOURS = ("#9fb0dc", "#4467c4", "#2f8f5b", "#c98a1b")
VERDICTS = {"harm": "#c0392b", "no_harm": "#2f8f5b"}


def number(value: Any) -> str:
    """A figure as tables print it."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size and (size >= 1e5 or size < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.3f}"


@dataclass(frozen=True)
class Section:
    """A titled table with an optional sentence below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def html(self) -> str:
        def cells(tag: str, values: Sequence[Any]) -> str:
            return "".join(f"<{tag}>{html.escape(number(value))}</{tag}>" for value in values)

        body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return f"<h2>{html.escape(self.title)}</h2><table><tr>{cells('th', self.header)}</tr>{body}</table>{note}"

    def markdown(self) -> str:
        """The same table for a card or a README."""
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        lines += ["| " + " | ".join(_cell(number(value)) for value in row) + " |" for row in self.rows]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


def _cell(text: str) -> str:
    """Text that cannot end its cell or line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


@dataclass(frozen=True)
class Series:
    """One line of a plot, with optional 95 % bounds."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Plot:
    """A line or bar chart, drawn as SVG when the report is written."""

    title: str
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    log_y: bool = False
    marks: Sequence[tuple[float, float, str]] = field(default_factory=tuple)
    labels: Sequence[str] | None = None

    @classmethod
    def bars(cls, title: str, labels: Sequence[str], values: Sequence[float], y_label: str = "") -> Self:
        """One bar per label."""
        return cls(title, [Series("", list(range(len(values))), values)], y_label=y_label, labels=labels)

    def svg(self) -> str:
        """The drawing, the same bytes for the same figures."""
        return _drawing(self._draw, 3.6)

    def _draw(self, axes: Any) -> None:
        if self.labels is not None:
            self._bars(axes, self.labels)
        else:
            self._lines(axes)
        for x, y, text in self.marks:
            axes.annotate(text, (x, y), xytext=(8, 12), textcoords="offset points", arrowprops={"arrowstyle": "->"})
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        if self.log_y:
            axes.set_yscale("log")

    def _bars(self, axes: Any, labels: Sequence[str]) -> None:
        """One bar a label, or one a series side by side."""
        if len(self.series) == 1:
            axes.bar(list(range(len(labels))), list(self.series[0].y), color="#4467c4")
        else:
            width = 0.8 / len(self.series)
            for index, series in enumerate(self.series):
                places = [x + (index - (len(self.series) - 1) / 2) * width for x in range(len(labels))]
                axes.bar(places, list(series.y), width, label=series.label, color=COLOURS[index % len(COLOURS)])
            axes.legend(frameon=False)
        axes.set_xticks(range(len(labels)), list(labels), parse_math=False)

    def _lines(self, axes: Any) -> None:
        for series in self.series:
            (line,) = axes.plot(series.x, series.y, marker="o", markersize=3, label=series.label)
            if series.low is not None and series.high is not None:
                axes.fill_between(series.x, series.low, series.high, color=line.get_color(), alpha=0.2)
        if len(self.series) > 1:
            axes.legend(frameon=False)


@dataclass(frozen=True)
class Forest:
    """Estimates with their intervals, one row each, and a line that they are held against.

    `words`: per row `harm`, `no_harm` or anything else, which sets the colour.
    """

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    words: Sequence[str]
    line: float | None = None
    x_label: str = ""

    def svg(self) -> str:
        """The drawing, the same bytes for the same figures."""
        return _drawing(self._draw, 1.2 + 0.28 * len(self.labels))

    def _draw(self, axes: Any) -> None:
        for place, (value, low, high, word) in enumerate(
            zip(self.values, self.low, self.high, self.words, strict=True)
        ):
            colour = VERDICTS.get(word, "#8a93a6")
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([value], [place], marker="o", color=colour, markersize=5)
        axes.axvline(0, color="#1d2433", linewidth=0.8)
        if self.line is not None:
            axes.axvline(self.line, color="#c0392b", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(self.labels)), list(self.labels), parse_math=False)
        axes.invert_yaxis()
        axes.set_title(self.title, parse_math=False)
        axes.set_xlabel(self.x_label, parse_math=False)


def _drawing(draw: Callable[[Any], None], height: float) -> str:
    """What `draw` puts on axes, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context(STYLE_OF_PLOTS):
        # Letters that the font lacks are drawn as boxes; the table beside the plot has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    # Drop the XML head and the metadata block, whose name spaces look like addresses to load.
    return re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)


@dataclass(frozen=True)
class Report:
    """Sections and plots under one title."""

    title: str
    sections: Sequence[Section]
    plots: Sequence[Plot | Forest] = ()
    lead: str = ""

    def html(self) -> str:
        parts = [f"<h1>{html.escape(self.title)}</h1>", f"<p>{html.escape(self.lead)}</p>" if self.lead else ""]
        parts += [plot.svg() for plot in self.plots]
        parts += [section.html() for section in self.sections]
        head = f"<meta charset='utf-8'><title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"

    def write(self, path: Path) -> None:
        """Write the page, atomically."""
        write_text(path, self.html())
