"""How the report looks."""

STYLE = """
:root { color-scheme: light; --ink: #1d2733; --muted: #5d6b7a; --line: #dfe5ea; --good: #177e63; --bad: #b3362b;
  --wash: #f4f7f6; --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; }
p { margin: .5rem 0; }
.lead, .note { color: var(--muted); }
.note { font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; margin: 2rem 0; }
.card { background: var(--wash); border-radius: .75rem; padding: 1.1rem 1.25rem; }
.card b { display: block; font-size: 1.9rem; line-height: 1.2; font-weight: 650; white-space: nowrap; }
.card span { color: var(--muted); font-size: .9rem; }
figure { margin: 1rem 0; }
img { max-width: min(100%, 42rem); height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: .5rem 0; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 500; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { white-space: nowrap; }
.heat td.number { padding: .4rem .5rem; border-bottom: 2px solid #fff; border-right: 2px solid #fff;
  text-align: center; }
.heat th.number { text-align: center; padding: .4rem .25rem; }
.cycle table { width: auto; }
.cycle td, .cycle th { padding-right: 1.25rem; }
.cycle { border: 1px solid var(--line); border-radius: .75rem; padding: 1.1rem 1.25rem; margin: 1rem 0; }
.tag { display: inline-block; border-radius: 1rem; padding: 0 .7rem; font-size: .85rem; font-weight: 600;
  margin-left: .4rem; }
.tag.published { background: #d9efe7; color: var(--good); }
.tag.rejected, .tag.skipped { background: #f8e3c8; color: #7a4a05; }
td.mark { white-space: nowrap; }
td.note { min-width: 14rem; }
.yes { color: var(--good); font-weight: 600; }
.no { color: var(--bad); font-weight: 600; }
code, pre, td.text { font-family: var(--mono); font-size: .85rem; }
td.text { overflow-wrap: anywhere; width: 25%; }
pre { background: var(--wash); border-radius: .75rem; padding: 1rem 1.25rem; overflow-x: auto; }
"""
