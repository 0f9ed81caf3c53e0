"""An HTML page that needs nothing beside it: no script, no other file, no network."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape

from sona.excerpt import printable

PAGE_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --muted: #5d6b7a; --line: #dfe5ea; --wash: #f4f6f8; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --muted: #9aa7b4; --line: #303943; --wash: #1b2128; --page: #12161b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
p { margin: .5rem 0; color: var(--muted); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; margin: 2rem 0 0; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 500; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.text { min-width: 12rem; overflow-wrap: anywhere; }
.route { min-width: 7.5rem; overflow-wrap: anywhere; }
tr:target td { background: var(--wash); }
"""
"""It sets the colours --ink, --muted, --line, --wash and --page, for light and dark."""


def standalone_page(title: str, content: str, style: str) -> str:
    """The whole page. Its content security policy allows its own style and nothing else, so it may be opened anywhere.

    Args:
        title: any text.
        content: HTML in which every text is escaped.
        style: of the content, after :data:`PAGE_STYLE`.
    """
    whole, title = PAGE_STYLE + style, escape(printable(title))
    digest = b64encode(sha256(whole.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{whole}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{content}\n</main>\n</body>\n</html>\n"
    )
