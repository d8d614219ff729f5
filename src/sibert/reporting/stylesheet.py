"""The style of the report: small, in light and in dark, one column on a phone."""

CSS = """\
:root {
  color-scheme: light dark;
  --ink: #1c2128; --muted: #57606a; --grid: #e4e7eb; --page: #f6f7f9; --card: #ffffff; --line: #d6dae0;
  --mark: #eef3fb;
  --run-0: #1668c7; --run-1: #d1570b; --run-2: #16835a; --run-3: #8a4bc9;
  --run-4: #c22f54; --run-5: #7d6b00; --run-6: #0b8299; --run-7: #6b6f76;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ee; --muted: #a3abb6; --grid: #2b313a; --page: #12151a; --card: #1a1f26; --line: #333a45;
    --mark: #202a38;
    --run-0: #6db3ff; --run-1: #ff9d5c; --run-2: #5fd0a0; --run-3: #c39bff;
    --run-4: #ff8aa8; --run-5: #d9c54a; --run-6: #5fd3e6; --run-7: #b4b9c1;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p, ul { margin: .4rem 0; }
.lead { max-width: 46rem; color: var(--muted); }
.notes {
  max-width: 60rem; padding: .5rem 1rem .5rem 2rem; border-left: 3px solid var(--run-1); background: var(--card);
  overflow-wrap: anywhere;
}
.scroll {
  width: fit-content; max-width: 100%; overflow-x: auto;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem; text-align: right; border-top: 1px solid var(--grid); vertical-align: top; }
td { white-space: nowrap; }
thead th { border: 0; white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--card); text-align: left; max-width: 45vw; }
tbody th { font-weight: 500; color: var(--muted); }
tr.marked > * { background: var(--mark); color: var(--ink); font-weight: 600; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; max-width: 26rem; }
th.text { text-align: left; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure {
  margin: 0; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  max-width: 44rem;
}
figcaption { font-size: .85rem; color: var(--muted); margin-top: .5rem; }
svg.plot { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
svg.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .4rem 0 0;
  font-size: .85rem; overflow-wrap: anywhere;
}
.key {
  display: inline-block; width: 1.6em; vertical-align: middle; margin-right: .45em;
  border-top: 2px solid currentColor;
}
.key.faint { border-top-width: 1px; opacity: .5; }
.key.dashed { border-top-style: dashed; }
.key.dotted { border-top-style: dotted; }
.key.dots { width: .55em; height: .55em; border: 0; border-radius: 50%; background: currentColor; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .4em; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 500; padding: .3rem 0; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
@media print { body { background: none; } figure { break-inside: avoid; } }
"""
