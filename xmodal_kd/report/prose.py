"""The Markdown of ``report.md`` as HTML, so that both reports say the same: tables, lists, paragraphs, no more."""

from __future__ import annotations

import re
from html import escape


def sections(markdown: str) -> dict[str, list[str]]:
    """HTML blocks by heading of the second level, in order; what stands before the first is under ``""``.

    The title and pictures are left out: a page has its own.
    """
    found: dict[str, list[str]] = {"": []}
    blocks = found[""]
    for text in markdown.strip().split("\n\n"):
        if text.startswith("## "):
            blocks = found.setdefault(text[3:], [])
        elif text.strip() and not text.startswith(("# ", "![")):
            blocks.append(block(text))
    return found


def block(text: str) -> str:
    """One table, list or paragraph."""
    lines = text.strip().split("\n")
    if lines[0].startswith("|"):
        return table([_cells(lines[0]), *(_cells(line) for line in lines[2:])])
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{inline(' '.join(lines))}</p>"


def table(rows: list[list[str]]) -> str:
    """The first row is the head; a column of figures stands to the right, a row of a role bears its colour."""
    head, *body = rows
    figures = [all(_is_figure(row[i]) for row in body) for i in range(len(head))]
    style = ["figure" if figure else "" for figure in figures]

    def line(tag: str, cells: list[str]) -> str:
        return "".join(f'<{tag} class="{s}">{inline(c)}</{tag}>' for c, s in zip(cells, style, strict=True))

    inside = "".join(f'<tr data-role="{escape(row[0])}">{line("td", row)}</tr>' for row in body)
    return f'<div class="scroll"><table><thead><tr>{line("th", head)}</tr></thead><tbody>{inside}</tbody></table></div>'


def inline(text: str) -> str:
    """Code and bold; all else is taken as it is."""
    parts = re.split(r"(`[^`]*`|\*\*[^*]*\*\*)", text)
    return "".join(_mark(part) for part in parts)


def _mark(part: str) -> str:
    if len(part) > 1 and part.startswith("`") and part.endswith("`"):
        return f"<code>{escape(part[1:-1])}</code>"
    if len(part) > 4 and part.startswith("**") and part.endswith("**"):
        return f"<strong>{escape(part[2:-2])}</strong>"
    return escape(part)


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _is_figure(cell: str) -> bool:
    return re.match(r"^[-+–]?[\d.,]*($|[\s%e(–/-])", cell) is not None


__all__ = ["block", "inline", "sections", "table"]
