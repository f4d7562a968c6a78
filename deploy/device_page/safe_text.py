"""Texts of others as HTML that does nothing: what prompts and responses hold is shown, never run or fetched.

markdown-it reads CommonMark with tables, without HTML, without images and without definitions of references,
which would show nothing of what they hold; nh3 (ammonia) then keeps a short list of tags. Two independent
locks: the page's content security policy is a third.
"""

from __future__ import annotations

import re

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markupsafe import Markup

__all__ = ["SHOWN_MOST", "excerpt", "safe_markdown"]

SHOWN_MOST = 20_000  # characters of one text on a page
TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
CELLS_MOST = 5000  # of a table: one with few bars and many lines has a cell for each pair of both
_HEADINGS = re.compile(r"<(/?)h[1-6]>")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and marks that turn the direction of writing round beyond their own text."""
_OUTWARDS = re.compile(r"(https?://|mailto:)", re.I)
"""How links begin that are shown as such: any other one would lead to our own pages, or to a program."""


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False})
    reader.enable(["table", "strikethrough"]).disable(["image", "reference"])
    reader.core.ruler.push("unseen", _leave_out_unseen)
    reader.validateLink = lambda url: _OUTWARDS.match(url) is not None  # type: ignore[method-assign]
    return reader


def _leave_out_unseen(state: StateCore) -> None:
    """Marks that were written as entities, or in the percent signs of a link, and have become themselves."""
    waiting: list[Token] = list(state.tokens)
    while waiting:
        token = waiting.pop()
        token.content = _UNSEEN.sub("", token.content)
        waiting += token.children or []


_READER, _NO_TABLES = _reader(), _reader().disable("table")


def safe_markdown(text: str) -> Markup:
    """A text as HTML of a few harmless tags. Headings become bold lines: the page's own outline stays."""
    shown = _plain(text)
    cut = shown[:SHOWN_MOST]
    rendered = (_READER if _cells(cut) <= CELLS_MOST else _NO_TABLES).render(cut)
    html = _HEADINGS.sub(lambda found: f"<{found[1]}p>", rendered)
    kept = nh3.clean(
        html,
        tags=TAGS,
        attributes={"a": {"href"}, "*": set()},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    more = (
        f"<p class=muted>… and {len(shown) - len(cut)} characters more</p>" if len(shown) > len(cut) else ""
    )
    return Markup(kept + more)


def excerpt(text: str, most: int = 160) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(_plain(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…"


def _cells(text: str) -> int:
    """How many cells a table in the text could have at most."""
    lines = text.split("\n")
    return len(lines) * max(line.count("|") for line in lines)


def _plain(text: str) -> str:
    return _UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
