"""A report as one document: sections of notes, tables, charts, lines and films.

Written as one self-contained HTML page, or as Markdown with its charts beside it.
"""

import base64
import importlib.util
import mimetypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlx
from rlx.config import choice
from rlx.errors import ConfigError
from rlx.page import charts
from rlx.page.charts import Chart, Dots
from rlx.show import console

if TYPE_CHECKING:
    import jinja2

FORMATS = {"html": "report.html", "md": "report.md"}
"""Format → the name of the file that the report is written to."""
FILMS = (".gif", ".mp4", ".webm")
MOST_POINTS = 40_000
"""The most returns of single seeds in a page, which take about 25 bytes each."""
MOST_FILM_BYTES = 600_000
"""The most bytes of films that are written into a page; others are named."""
NUMBER = re.compile(r"[<>≤≥]?([-−]?[\d,]*\.?\d+(?:e[-+]?\d+)?) ?%?( \[.*\]| \(.*\))?")
DURATION = re.compile(r"(?:(\d+) h ?)?(?:(\d+) min ?)?(\d+) s")


@dataclass(frozen=True)
class Note:
    """A sentence or two."""

    text: str
    warns: bool = False
    """Whether a reader of the numbers should know it."""


@dataclass(frozen=True)
class Lines:
    """Lines that are shown as they are: of a shell, or of a file."""

    title: str
    text: str
    folded: bool = False
    """Whether they are shown when the reader asks for them."""


@dataclass(frozen=True)
class Film:
    """An episode to watch."""

    path: Path
    bytes: bytes | None
    """Its content; None: too large for a page."""

    @property
    def type(self) -> str:
        """As in "video/mp4"."""
        return mimetypes.guess_type(self.path.name)[0] or "video/webm"

    @property
    def url(self) -> str:
        """Its content as a URL."""
        return f"data:{self.type};base64,{base64.b64encode(self.bytes or b'').decode()}"


Part = Note | console.Table | Chart | Dots | Lines | Film


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading of its own."""

    title: str
    parts: Sequence[Part]

    @property
    def id(self) -> str:
        """What a link to it is called."""
        return re.sub(r"\W+", "-", self.title.lower())


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    sections: Sequence[Section]

    def write(self, folder: Path, kind: str) -> Path:
        """Write the report in the format `kind` into a folder; returns its file."""
        file = folder / FORMATS[kind]
        template = _environment(kind).get_template(f"page.{kind}")
        drawn = [part for section in self.sections for part in section.parts]
        count = sum(isinstance(part, Chart) for part in drawn)
        values: dict[str, Any] = {
            "document": self,
            "version": rlx.__version__,
            "points": MOST_POINTS // max(1, count),
        }
        if kind == "html":
            import vl_convert

            # Its stub wants a snippet, and with an empty one the bundle is empty.
            bundle: Any = vl_convert.javascript_bundle
            values["vega"] = bundle()
        else:
            values["images"] = self._draw(folder)
        file.write_text(template.render(values))
        return file

    def _draw(self, folder: Path) -> dict[str, str]:
        """Draw all charts as PNG into a folder; returns title → name of the file."""
        import vl_convert

        images: dict[str, str] = {}
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Chart | Dots):
                    drawn = charts.spec(part, MOST_POINTS) | {"width": 560, "background": "white"}
                    name = f"report-{len(images) + 1}.png"
                    (folder / name).write_bytes(vl_convert.vegalite_to_png(drawn, scale=2))
                    images[part.title] = name
        return images


def films(folders: Iterable[Path]) -> list[Film]:
    """The films in the folders of runs, with the content of those that a page has room for."""
    found = []
    left = MOST_FILM_BYTES
    for path in (path for folder in folders for path in sorted(folder.glob("*"))):
        if path.suffix in FILMS:
            size = path.stat().st_size
            fits = size <= left
            found.append(Film(path, path.read_bytes() if fits else None))
            left -= size if fits else 0
    return found


def check_format(kind: str | None) -> None:
    """ConfigError where no report can be written in the format `kind`; None: none is asked for."""
    if kind is None:
        return
    choice(kind, FORMATS, "format")
    for package in ("jinja2", "altair", "vl_convert"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f'format={kind}: {package} is not installed; pip install "rlx[report]"'
            )


def _environment(kind: str) -> "jinja2.Environment":
    """What renders the templates of a format."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlx.page"),
        autoescape=kind == "html",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "kind": lambda part: type(part).__name__,
        "cell": console.cell,
        "sort_value": sort_value,
        "columns": _columns,
        "spec": charts.spec,
        "code": _code,
        "escaped": _escaped,
    }
    return environment


def sort_value(cell: Any) -> float | None:
    """What a cell of a table is sorted by: a number, a duration in seconds; None: its text."""
    if not isinstance(cell, str):
        return float(cell)
    duration = DURATION.fullmatch(cell)
    if duration:
        hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return 3600 * hours + 60 * minutes + seconds
    number = NUMBER.fullmatch(cell)
    if number is None:
        return None
    return float(number[1].replace(",", "").replace("−", "-"))


def _columns(table: console.Table) -> list[tuple[str, bool]]:
    """The names of a table's columns, and whether each holds numbers alone."""
    found = []
    for number, name in enumerate(table.header):
        values = [row[number] for row in table.rows if row[number] not in ("", "–")]
        found.append((name, all(sort_value(value) is not None for value in values)))
    return found


def _escaped(text: str) -> str:
    """Text of which Markdown makes nothing else, also within a table."""
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text).replace("\n", " ")


def _code(text: str) -> str:
    """Lines as a block of Markdown, fenced by more backticks than they have."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
