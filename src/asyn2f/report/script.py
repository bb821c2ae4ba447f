"""The few lines of script with which the page draws its figures."""

SCRIPT = """
"use strict";
const page = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const theme = () => page.themes[dark.matches ? "dark" : "light"];
const settings = { displayModeBar: false, responsive: true };
const byName = (name) => document.getElementById(name);

// A timeline may have a hundred thousand items. It is drawn window by window: what
// lies in the window or beside it. A view from afar takes the coarser bars that `meta`
// brings, and leaves out marks that would hide them: more than `crowd` in a row.
const MANY = 16000;
const NAMES = ["x", "y", "customdata"];

function parse(source, stride) {
  const arrays = NAMES.map((name) => {
    if (!source[name]?.bdata) return new Float32Array();
    const bytes = Uint8Array.from(atob(source[name].bdata), (c) => c.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  });
  return { x: arrays[0], y: arrays[1], data: arrays[2], stride };
}

function itemsIn({ x, stride }, [from, to], beside = 0) {
  const [least, greatest] = [from - beside * (to - from), to + beside * (to - from)];
  const second = Math.min(1, stride - 1); // an item's end, where it has one
  const items = [];
  for (let i = 0; i < x.length; i += stride) {
    if (x[i + second] >= least && x[i] <= greatest) items.push(i);
  }
  return items;
}

function pick({ x, y, data, stride }, items) {
  const [pickedX, pickedY] = [x, y].map((all) => {
    const picked = new Float32Array(items.length * stride);
    items.forEach((i, k) => picked.set(all.subarray(i, i + stride), k * stride));
    return picked;
  });
  const width = data.length / x.length;
  const said = (i) => Array.from(data.subarray(i * width, (i + 1) * width));
  return { x: pickedX, y: pickedY, customdata: data.length ? items.map(said) : [] };
}

const course = page.figures.timeline;
const parsed = (course?.data ?? []).map(({ x, y, customdata, meta }) => ({
  ...meta,
  rows: new Set(parse({ y }, 1).y).size,
  fine: parse({ x, y, customdata }, meta.stride),
  coarse: meta.coarse && parse(meta.coarse, meta.stride),
}));

function dataIn(range) {
  const isBar = parsed.map((part) => part.coarse && part.stride > 1);
  const bars = parsed.reduce((sum, part, k) =>
    sum + (isBar[k] ? itemsIn(part.fine, range).length : 0), 0);
  return course.data.map((trace, k) => {
    const { fine, coarse, crowd, rows, stride } = parsed[k];
    const drawn = coarse && bars > MANY ? coarse : fine;
    let items = itemsIn(drawn, range, 3 * bars > MANY ? 0 : 1);
    const changed = { meta: null };
    if (crowd) {
      const inRow = itemsIn(fine, range).length / (stride > 1 ? 1 : rows);
      if (inRow > crowd) items = [];
      if (trace.marker) {
        const size = trace.marker.size * Math.min(1, 45 / inRow);
        changed.marker = { ...trace.marker, size };
      }
    }
    // What a click on the legend has hidden or shown stays so.
    const visible = byName("timeline").data?.[k].visible ?? trace.visible ?? true;
    return { ...trace, ...pick(drawn, items), ...changed, visible };
  });
}

function drawTimeline(range) {
  const layout = { ...course.layout, template: theme() };
  layout.xaxis = { ...course.layout.xaxis, range };
  Plotly.react("timeline", dataIn(range), layout, settings);
}

const shownRange = () => byName("timeline").layout.xaxis.range.map(Number);

for (const [name, figure] of Object.entries(page.figures)) {
  if (name === "timeline") {
    drawTimeline(figure.layout.xaxis.range);
  } else {
    const layout = { ...figure.layout, template: theme() };
    Plotly.newPlot(name, figure.data, layout, settings);
  }
}
if (course) {
  byName("timeline").on("plotly_relayout", (change) => {
    const names = Object.keys(change);
    if (names.some((name) => name.startsWith("xaxis"))) drawTimeline(shownRange());
  });
}
dark.addEventListener("change", () => {
  for (const name of Object.keys(page.figures)) {
    Plotly.relayout(name, { template: theme() });
  }
});
for (const button of document.querySelectorAll(".windows button")) {
  button.addEventListener("click", () => {
    const { from, to, move, zoom } = button.dataset;
    for (const other of button.parentElement.children) other.classList.remove("on");
    if (from) {
      button.classList.add("on");
      drawTimeline([Number(from), Number(to)]);
      return;
    }
    const whole = document.querySelector(".windows .whole").dataset;
    const [first, last] = [Number(whole.from), Number(whole.to)];
    const [start, end] = shownRange();
    const length = Math.min((end - start) * Number(zoom ?? 1), last - first);
    const middle = (start + end) / 2 + 0.8 * (end - start) * Number(move ?? 0);
    const next = Math.min(Math.max(middle - length / 2, first), last - length);
    drawTimeline([next, next + length]);
  });
}
for (const button of document.querySelectorAll("button.save")) {
  button.addEventListener("click", () => {
    const name = button.dataset.of;
    const { width, height } = byName(name)._fullLayout;
    const filename = `${document.title.replace(/[^\\w-]+/g, "-")}-${name}`;
    Plotly.downloadImage(name, { format: "png", scale: 3, width, height, filename });
  });
}
"""
