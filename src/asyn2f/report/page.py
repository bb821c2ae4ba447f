"""The page around the figures: its frame and its style."""

from string import Template

FRAME = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<noscript>The figures of this page are drawn by a script.</noscript>
<p id="old" hidden>This browser is too old for the figures of this page: they need
Chrome 80, Firefox 113, Safari 16.4, or a newer one.</p>
$body
</main>
<script type="text/plain" id="library">$library</script>
<script type="text/plain" id="figures">$figures</script>
<script>$script</script>
</body>
</html>
""")

STYLE = """
:root {
  --page: #f6f8fa; --panel: #ffffff; --text: #1e293b; --soft: #64748b;
  --line: #e2e8f0; --accent: #0072b2; --warm: #b45309; --warm-page: #fffbeb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1621; --panel: #171f2d; --text: #e2e8f0; --soft: #94a3b8;
    --line: #273244; --accent: #56b4e9; --warm: #f0a04b; --warm-page: #241d12;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    sans-serif;
  -webkit-font-smoothing: antialiased;
}
main { max-width: 1240px; margin: 0 auto; padding: 56px 28px 40px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.02em; margin: 6px 0 10px;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -0.01em; margin: 0 0 4px; }
.kicker { color: var(--accent); font-weight: 600; font-size: 14px; }
.lede { font-size: 18px; color: var(--soft); max-width: 46em; margin: 0; }
.pill { display: inline-block; margin-left: 10px; padding: 1px 10px;
  border-radius: 99px; border: 1px solid var(--line); color: var(--soft);
  font-weight: 500; }
.notes { margin: 24px 0 0; padding: 12px 18px 12px 36px; border-radius: 12px;
  background: var(--warm-page); color: var(--warm); font-size: 14px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px;
  margin: 32px 0 14px; }
@media (max-width: 900px) { .cards { grid-template-columns: repeat(2, 1fr); } }
.card, section { background: var(--panel); border: 1px solid var(--line);
  border-radius: 14px; }
.card { padding: 16px 20px 14px; min-width: 0; }
.card .label { color: var(--soft); font-size: 13px; }
.card .value { font-size: clamp(18px, 2vw, 26px); font-weight: 650;
  letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; line-height: 1.3; }
.card .note { color: var(--soft); font-size: 13px; min-height: 1.5em; }
.sections { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: 14px; }
section { grid-column: 1 / -1; padding: 22px 24px 14px; min-width: 0; }
section.half { grid-column: auto; }
@media (max-width: 900px) { section.half { grid-column: 1 / -1; } }
section > p { margin: 0 0 8px; color: var(--soft); font-size: 15px; max-width: 62em; }
section > p.empty { margin: 18px 0 20px; font-style: italic; }
.windows { margin: 10px 0 4px; display: flex; gap: 6px; flex-wrap: wrap; }
button { font: inherit; font-size: 13px; color: var(--text); background: transparent;
  border: 1px solid var(--line); border-radius: 8px; padding: 3px 12px;
  cursor: pointer; }
button.on { background: var(--line); }
button:hover { border-color: var(--accent); color: var(--accent); }
button.save { float: right; margin-left: 12px; color: var(--soft); }
.scroll { overflow: auto; max-height: 720px; margin: 8px 0 10px; }
.scroll.more { mask: linear-gradient(to left, transparent, #000 44px); }
.scroll.below { mask: linear-gradient(to top, transparent, #000 44px); }
.scroll.more.below { mask: linear-gradient(to left, transparent, #000 44px) intersect,
  linear-gradient(to top, transparent, #000 44px); }
.hint { display: none; color: var(--soft); font-size: 13px; text-align: right;
  margin: -6px 0 10px; }
.scroll.wide + .hint { display: block; }
.legend { margin: 8px 0 0; font-size: 13px; color: var(--text); }
.legend div { display: flex; flex-wrap: wrap; align-items: center; gap: 0 14px; }
.key { display: inline-flex; align-items: center; gap: 6px; border: 0;
  padding: 2px 0; white-space: nowrap; }
.key.off { opacity: 0.4; }
.key svg { flex: none; font: bold 12px monospace; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; position: sticky; top: 0;
  background: var(--panel); }
th:first-child, td:first-child { text-align: left; padding-left: 0; left: 0;
  position: sticky; background: var(--panel); }
th:first-child { z-index: 1; }
th.said, td.said { text-align: left; white-space: normal; padding-left: 16px;
  min-width: 16em; }
tr.total td { font-weight: 600; border-bottom: 0; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%;
  margin-right: 8px; }
.share { display: inline-flex; width: 88px; height: 9px; border-radius: 5px;
  overflow: hidden; background: var(--line); vertical-align: middle; }
.share i { display: block; height: 100%; }
.share .trained { background: var(--accent); }
.share .waited { background: repeating-linear-gradient(135deg, #94a3b8 0 2px,
  transparent 2px 5px); }
details { border-top: 1px solid var(--line); padding: 10px 0; }
details:first-of-type { border-top: 0; }
summary { cursor: pointer; font-weight: 500; }
pre { overflow: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
  monospace; margin: 10px 0 6px; }
footer { color: var(--soft); font-size: 13px; margin: 26px 2px 0; }
@media (max-width: 600px) {
  main { padding: 28px 12px 24px; }
  h1 { font-size: 28px; }
  .lede { font-size: 16px; }
  .cards { gap: 10px; margin: 22px 0 10px; }
  .card { padding: 12px 12px 10px; }
  .card .value { letter-spacing: -0.03em; }
  .sections { gap: 10px; }
  section { padding: 18px 14px 10px; }
  button:not(.key) { padding: 5px 13px; }
}
@media print { body { background: none; } section, .card { break-inside: avoid; } }
"""
