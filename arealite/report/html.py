"""HTML in which every text is escaped unless it was made here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from arealite.telemetry.view import harmless


class Html(str):
    """Markup that was made by tag(); every other string is text, and escaped."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """<name class="...">children</name>; `class_` stands for class.

    Control characters, and what would turn the direction of the page, are spelled out.
    """
    inner = "".join(c if isinstance(c, Html) else html.escape(harmless(c)) for c in children)
    told = "".join(
        f' {key.rstrip("_")}="{html.escape(harmless(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{told}>" if name == "img" else f"<{name}{told}>{inner}</{name}>")


def table(rows: Iterable[tuple[str, Iterable[str]]], heads: Iterable[str] = ()) -> Html:
    """A row name and its cells in each line."""
    head = [tag("tr", tag("td"), *(tag("th", h, scope="col") for h in heads))] if heads else []
    body = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells))
        for name, cells in rows
    ]
    return tag("div", tag("table", *head, *body), class_="wide")


def picture(svg: bytes, words: str) -> Html:
    """An SVG as an image of its own: its names cannot clash with another's, and it runs nothing."""
    data = base64.b64encode(svg).decode("ascii")
    return tag("img", src=f"data:image/svg+xml;base64,{data}", alt=words)
