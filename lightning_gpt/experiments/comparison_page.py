"""A comparison as one HTML file that needs nothing beside it: table, curves, the values under the pointer."""

import html
import json
from pathlib import Path

from lightning_gpt.experiments.comparison import AXES, ENDED_OTHERWISE, Comparison
from lightning_gpt.experiments.comparison_figure import svg
from lightning_gpt.experiments.comparison_text import remarks, table

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { cursor: pointer; border-bottom: 2px solid #888; }
td:last-child { font-family: monospace; }
tr.sick td { color: #a00; }
.wide { overflow-x: auto; }
.note { background: #fff6d6; padding: .3em .8em; margin: .2em 0; }
.dim { color: #666; margin: .3em 0; }
#charts { position: relative; margin-top: 1.5em; }
#charts svg { width: 100%; height: auto; }
#tip { position: absolute; display: none; pointer-events: none; background: #fffffff2; border: 1px solid #999;
  padding: .4em .7em; font-size: 12px; white-space: pre; }
#line { position: absolute; display: none; pointer-events: none; width: 1px; background: #888; }
"""
SCRIPT = """
const box = document.getElementById('charts'), tip = document.getElementById('tip'),
  line = document.getElementById('line');
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
function under(chart, px, py, x, y) {
  const [left, top, width, height] = chart.frame;
  if (px < left || px > left + width || py < top || py > top + height) return null;
  const at = chart.x[0] + (px - left) / width * (chart.x[1] - chart.x[0]);
  const rows = chart.curves.filter(c => at <= c.x[c.x.length - 1] * 1.02 && at >= c.x[0] * 0.98)
    .map(c => { const i = nearest(c.x, at); return {name: c.name, x: c.x[i], y: c.y[i]}; });
  rows.sort((a, b) => a.y - b.y);
  return {at, rows};
}
box.addEventListener('mousemove', event => {
  const picture = box.querySelector('svg').getBoundingClientRect(), size = data.size;
  const scale = picture.width / size[0];
  const px = (event.clientX - picture.left) / scale, py = (event.clientY - picture.top) / scale;
  tip.style.display = line.style.display = 'none';
  for (const chart of data.charts) {
    const found = under(chart, px, py);
    if (!found || !found.rows.length) continue;
    tip.textContent = chart.metric + ' near ' + data.axis + ' ' + Number(found.at.toPrecision(4)).toLocaleString()
      + '\\n' + found.rows.slice(0, 20).map(r => r.y.toPrecision(5) + '  ' + r.name).join('\\n');
    tip.style.display = line.style.display = 'block';
    const right = px > size[0] / 2;
    tip.style.left = right ? 'auto' : (px * scale + 14) + 'px';
    tip.style.right = right ? ((size[0] - px) * scale + 14) + 'px' : 'auto';
    tip.style.top = (py * scale) + 'px';
    line.style.left = (px * scale) + 'px';
    line.style.top = (chart.frame[1] * scale) + 'px';
    line.style.height = (chart.frame[3] * scale) + 'px';
    break;
  }
});
box.addEventListener('mouseleave', () => { tip.style.display = line.style.display = 'none'; });
document.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const body = document.querySelector('tbody'), up = head.dataset.up !== '1';
  head.dataset.up = up ? '1' : '0';
  const key = row => row.cells[column].textContent.replace(/,/g, '');
  const order = (a, b) => { const x = parseFloat(key(a)), y = parseFloat(key(b));
    return isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b), undefined, {numeric: true}) : x - y; };
  [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => body.append(row));
}));
"""


def page(comparison: Comparison) -> str:
    """The file's text."""
    picture, charts = svg(comparison)
    heading, rows = table(comparison)
    size = [float(word) for word in picture.partition('viewBox="')[2].partition('"')[0].split()[2:]]
    data = json.dumps({"axis": AXES[comparison.axis], "size": size, "charts": charts}).replace("<", "\\u003c")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heading)
    body = "".join(
        f"<tr{_kind(row.status)}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>\n"
        for row, cells in zip(comparison.rows, rows)
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in comparison.notes)
    below = "".join(f'<p class="dim">{html.escape(line)}</p>\n' for line in remarks(comparison))
    title = f"{len(comparison.rows)} runs compared"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n{notes}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n{below}'
        f'<div id="charts">{picture}<div id="line"></div><div id="tip"></div></div>\n'
        f"<script>const data = {data};\n{SCRIPT}</script></body></html>\n"
    )


def _kind(status: str) -> str:
    return ' class="sick"' if any(word in status for word in ENDED_OTHERWISE) else ""


def save_page(comparison: Comparison, path: Path) -> None:
    """Writes the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(page(comparison), encoding="utf-8")
    temporary.replace(path)
