"""The report's style sheet. Light and dark follow the reader's system."""

STYLE = """
:root{--bg:#f5f6f8;--panel:#fff;--ink:#1b2330;--soft:#5d6778;--line:#e3e6ec;--good:#157347;--bad:#b42318;
--good-bg:#e8f5ee;--bad-bg:#fdecea}
@media(prefers-color-scheme:dark){:root{--bg:#12151b;--panel:#1b2029;--ink:#e8ebf0;--soft:#9aa4b5;
--line:#2d3441;--good:#5fd39a;--bad:#ff8f84;--good-bg:#16302a;--bad-bg:#3a1f1f}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 20px 60px}
header p{color:var(--soft);margin:6px 0 0}
h1{font-size:30px;line-height:1.2;margin:0;letter-spacing:-.02em}
h2{font-size:17px;margin:0 0 14px}
section{background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:20px 22px;
margin-top:18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;margin-top:22px}
.card{background:var(--panel);border:1px solid var(--line);border-top:4px solid var(--arm,var(--soft));
border-radius:12px;padding:14px 18px}
.card.good{--arm:var(--good);background:var(--good-bg)}.card.bad{--arm:var(--bad);background:var(--bad-bg)}
.card span,.card small{display:block;color:var(--soft)}
.card b{display:block;font-size:34px;line-height:1.15;letter-spacing:-.02em}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:0 18px}
.videos{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:16px}
figure{margin:0}video{width:100%;border-radius:8px;background:#111827;display:block}
figcaption{color:var(--soft);margin-top:6px}figcaption b{color:var(--ink);margin-right:6px}
.ramp{display:inline-block;width:90px;height:9px;border-radius:5px;margin:0 4px}
.legend{list-style:none;margin:0 0 8px;padding:0;display:grid;
grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:2px 18px;color:var(--soft);font-size:13.5px}
.legend b{color:var(--ink);margin-right:4px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr>:first-child{text-align:left;padding-left:0}tbody th{font-weight:500}
thead th{color:var(--soft);font-weight:500;font-size:13px}
tfoot td,tfoot th{border-bottom:0;border-top:2px solid var(--line);font-weight:600}
td span,td small{color:var(--soft)}td small{display:block;font-size:12px;font-weight:400}
td.wide{text-align:left;white-space:normal;word-break:break-word}
td.good{color:var(--good)}td.bad{color:var(--bad)}
.note{color:var(--soft);font-size:13px;margin:10px 0 12px}
pre{background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:10px 12px;overflow-x:auto;
white-space:pre-wrap}
summary{cursor:pointer;color:var(--soft)}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--soft)}
svg .label,svg .value{text-anchor:middle}svg .value{fill:var(--ink);font-weight:600}
svg .end{text-anchor:end}svg .start{fill:var(--ink)}
svg .grid{stroke:var(--line);fill:none}svg .whisker{stroke:var(--ink);stroke-width:1.3;opacity:.75}
@media(max-width:640px){.columns,.videos,.legend{grid-template-columns:1fr}}
@media print{section,.card{break-inside:avoid}.videos{display:none}}
"""
