"""The frame of every page that we write: one style sheet, one head, figures with their keys. No scripts, no network.

A page opens from a mail or over scp: everything is inline. Texts are escaped here or by the template engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from markupsafe import Markup

from rq.quality.charts import COLOURS, Figure


def head(title: str) -> Markup:
    """Everything before the body of a page."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n'
    )


def document(title: str, *, eyebrow: str, lead: str, body: str) -> str:
    """A whole page; `body` is HTML, made of sections."""
    return (
        f'{head(title)}<body>\n<header>\n<p class="eyebrow">{escape(eyebrow)}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="lead">{escape(lead)}</p>\n</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def figure_block(figures: Sequence[Figure]) -> str:
    """Figures side by side as far as the page is wide, each with a key where it has several series."""
    drawn = []
    for figure in figures:
        names = "".join(
            f'<li><i class="swatch s{index % COLOURS}"></i>{escape(name)}</li>'
            for index, name in enumerate(figure.names)
        )
        key = f'<ul class="key">{names}</ul>' if names else ""
        drawn.append(f"<figure><figcaption>{escape(figure.caption)}</figcaption>{key}{figure.chart}</figure>")
    return f'<div class="figures three">{"".join(drawn)}</div>'
