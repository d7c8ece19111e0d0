"""Write the tables of the pages from the records in docs/results/.

    python docs/tables.py            rewrites every table that is stale, and names its page
    python docs/tables.py --check    changes nothing; names the pages with stale tables, exit code 1

A page asks for a table by two comments, each at the beginning of a line. What stands between them
is written by this command:

    <!-- table: learning agent=dqn -->
    <!-- end -->

The first word names the record: docs/results/learning.json. Words after it choose rows, those whose
command has all of these words. docs/results/index.md says what a record is.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
TABLE = re.compile(r"^<!-- table: ([^\n]+?) -->$.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)
ORIGIN = ("command", "commit", "date", "machine", "seeds")
"""How a number was made. Each is said once for the whole record, or in every row."""


class Number(str):
    """A number as the record writes it, so that 0.010 keeps its last zero."""


def main(arguments: Sequence[str]) -> int:
    """Rewrite or check the pages; returns the exit code."""
    if list(arguments) not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    check = bool(arguments)
    stale = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        try:
            new = with_tables(old)
        except (OSError, ValueError) as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        if new == old:
            continue
        stale += 1
        print(f"{page}: stale, run python docs/tables.py" if check else f"{page}: rewritten")
        if not check:
            page.write_text(new, encoding="utf-8")
    return 1 if check and stale else 0


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def with_tables(page: str) -> str:
    """The text of a page with all its tables made anew."""

    def made(marker: re.Match[str]) -> str:
        name, *words = marker[1].split()
        return f"<!-- table: {marker[1]} -->\n\n{table(read(name), words)}\n\n<!-- end -->"

    return TABLE.sub(made, page)


def read(name: str) -> dict[str, Any]:
    """The record docs/results/`name`.json, its numbers as they are written, and its `name`."""
    text = (DOCS / "results" / f"{name}.json").read_text(encoding="utf-8")
    return {"name": name, **json.loads(text, parse_float=Number, parse_int=Number)}


def table(record: Mapping[str, Any], words: Sequence[str] = ()) -> str:
    """A record as a Markdown table, and a line that says how it was made.

    `words` choose the rows whose command has them all; ValueError where there is none.
    """
    rows = [row for row in record["rows"] if chosen(row, words)]
    if not rows:
        raise ValueError(f"no row has {' '.join(words)} in its command")
    columns: dict[str, str] = record["columns"]
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[cell(name, row.get(name)) for name in columns] for row in rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{'; '.join(origin(record))}."


def chosen(row: Mapping[str, Any], words: Sequence[str]) -> bool:
    """Whether the row's command has all of `words`."""
    given = {word for line in commands(row) for word in line.split()}
    return given.issuperset(words)


def commands(part: Mapping[str, Any]) -> list[str]:
    """The command lines of a record or of a row: none, one, or several that follow each other."""
    command = part.get("command")
    if command is None:
        return []
    return [command] if isinstance(command, str) else list(command)


def cell(name: str, value: Any) -> str:
    """The `value` of the column `name` as it is shown.

    A return has the keys of summary.json: {"iqm": -80.6, "ci95": [-82.6, -78.9]}, the interval
    where there is one.
    """
    if value is None:
        return "—"
    if name == "command":
        return "<br>".join(f"`{line}`" for line in commands({name: value}))
    if isinstance(value, list):
        return ", ".join(cell(name, one) for one in value)
    if isinstance(value, dict):
        interval = f" [{cell(name, value['ci95'])}]" if "ci95" in value else ""
        return cell(name, value["iqm"]) + interval
    if not isinstance(value, Number):
        return str(value)
    if value.isdigit() and len(value) > 3:
        value = Number(f"{int(value):,}".replace(",", "\N{NO-BREAK SPACE}"))
    return value.replace("-", "\N{MINUS SIGN}")


def origin(record: Mapping[str, Any]) -> Iterator[str]:
    """How the whole record was made: what of it is not said row by row."""
    yield f"Record `{record['name']}`"
    lines = commands(record)
    if lines:
        yield "made by " + ", then ".join(f"`{line}`" for line in lines)
    if record.get("commit"):
        yield f"commit {record['commit']} of {record['date']}"
    if record.get("seeds"):
        yield f"seeds {record['seeds']}"
    if record.get("machine"):
        yield record["machine"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
