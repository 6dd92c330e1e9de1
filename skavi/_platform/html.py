"""HTML for notebooks: small tables of results, and links to the documentation."""

from collections.abc import Iterable, Sequence
from html import escape

#: Where scikit-learn's HTML repr of an estimator or a component links to.
DOC_LINK_TEMPLATE = (
    "https://skavi.readthedocs.io/en/stable/generated/{estimator_module}.{estimator_name}.html"
)


def html_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """Return an HTML table with a title and, below it, a note; every cell is escaped.

    Numbers (float) are shown to four significant digits.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    foot = f"<p>{escape(note)}</p>" if note else ""
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    return (
        f'<div class="skavi-result"><strong>{escape(title)}</strong>'
        f"<table>{head}<tbody>{body}</tbody></table>{foot}</div>"
    )


def _cell(value):
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td>{escape(text)}</td>"
