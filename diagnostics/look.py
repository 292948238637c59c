"""How a report looks: on a phone, on a desk and on paper, in light and dark."""

CSS = """
:root {
  --paper: #fff; --ink: #1d2329; --soft: #5b6670; --rule: #dde2e6; --card: #f6f8f9;
  --good: #18794e; --good-card: #e9f6ef; --bad: #b3261e; --bad-card: #fdecea; --open: #8a5a00; --open-card: #fdf3dc;
  --band: #e3e9ee;
  --c0: #2a78b5; --c1: #d9661f; --c2: #1f9d6b; --c3: #b0549c; --c4: #9a7d0a; --c5: #4a5fc1; --c6: #c23b3b;
  --c7: #5d7079;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --ink: #e4e8eb; --soft: #9aa6b0; --rule: #313a42; --card: #1b2126;
    --good: #5fd09b; --good-card: #15302a; --bad: #ff9d94; --bad-card: #3d1f1e; --open: #f0c060; --open-card: #332a16;
    --band: #2b343c;
    --c0: #63b1ec; --c1: #f79256; --c2: #54cf9d; --c3: #dd8bcb; --c4: #d9bd45; --c5: #93a4f5; --c6: #f47c7c;
    --c7: #a3b6bf;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--paper);
}
h1 { font-size: clamp(1.3rem, 4.5vw, 1.8rem); line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; line-height: 1.3; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4 {
  margin: 0 0 .15rem; font-weight: 600; font-size: .85rem; line-height: 1.3; overflow-wrap: anywhere;
}
p, ul { max-width: 46rem; }
.brand { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .03em; }
section { margin: 0 0 3rem; scroll-margin-top: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem .5rem; margin: 0 0 3rem; }
nav a {
  color: inherit; text-decoration: none; font-size: .85rem; padding: .15rem .65rem; border: 1px solid var(--rule);
  border-radius: 1rem;
}
nav a:hover, nav a:focus-visible { background: var(--card); border-color: var(--soft); }
.verdict { border-left: .3rem solid; border-radius: .3rem; padding: .9rem 1.1rem; margin: 0 0 1.25rem; }
.verdict > :last-child { margin-bottom: 0; }
.headline { margin: 0 0 .35rem; font-size: 1.15rem; font-weight: 650; }
.passed { border-color: var(--good); background: var(--good-card); }
.failed { border-color: var(--bad); background: var(--bad-card); }
.unknown { border-color: var(--open); background: var(--open-card); }
.passed .headline { color: var(--good); } .failed .headline { color: var(--bad); }
.unknown .headline { color: var(--open); }
.passed .headline::before { content: "\\2713\\00a0"; } .failed .headline::before { content: "\\2717\\00a0"; }
.reasons { margin: 0; padding-left: 1.2rem; } .reasons li { margin: .3rem 0; overflow-wrap: anywhere; }
.left-out { color: var(--soft); font-size: .9rem; padding-left: 1.2rem; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
.legend, figcaption { color: var(--soft); font-size: .88rem; line-height: 1.5; max-width: 46rem; margin: .6rem 0 0; }
.scroll { overflow-x: auto; max-width: 100%; }
table {
  width: max-content; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  line-height: 1.35;
}
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; color: var(--soft); border-bottom-color: var(--soft); }
thead td { border-bottom-color: var(--soft); }
tbody th { font-weight: 500; }
tbody th, .name { text-align: left; }
tbody th, thead td { position: sticky; left: 0; background: var(--paper); padding-left: 0; }
tbody th { min-width: 4rem; max-width: 12rem; white-space: normal; overflow-wrap: anywhere; }
.bad { color: var(--bad); background: var(--bad-card); font-weight: 650; }
figure { margin: 0; }
.legend + figure, .legend + .scroll, figure + .scroll, figure + .legend { margin-top: 1.75rem; }
@media (max-width: 30rem) {
  th, td { padding: .32rem .4rem; }
  tbody th { max-width: 8.5rem; }
}
.panels {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr));
  gap: 1.1rem 1.4rem;
}
.panel { min-width: 0; break-inside: avoid; }
.wide, .scroll.pairs { grid-column: 1 / -1; }
.missing { color: var(--soft); font-size: .88rem; margin: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; }
svg text { font-variant-numeric: tabular-nums; }
.wide svg { max-width: 34rem; }
.facts { margin: 0; columns: 22rem; column-gap: 2.5rem; font-size: .88rem; }
.facts div {
  display: flex; justify-content: space-between; gap: 1rem; padding: .28rem 0; border-bottom: 1px solid var(--rule);
  break-inside: avoid;
}
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
@media print {
  :root {
    --paper: #fff; --ink: #000; --soft: #444; --rule: #ccc; --card: #fff; --band: #e8e8e8;
    --good: #18794e; --good-card: #fff; --bad: #b3261e; --bad-card: #fff; --open: #8a5a00; --open-card: #fff;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  .panels { grid-template-columns: repeat(3, 1fr); gap: .8rem 1rem; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: .15rem .4rem; }
  .pairs > div { min-width: 0 !important; }
  .facts { columns: 2; }
  section { margin-bottom: 1.5rem; }
}
"""
