// What draws the figures of a page; they and Plotly stand in it.
"use strict";
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const settings = { displayModeBar: false, responsive: true };
const NARROW = 640; // pixels of a figure
const TOP = 14; // margin of a figure on the page; a saved one has its legend there

// ---------------------------------------------------------------- look

const inScheme = (value) => !dark.matches ? value : JSON.parse(
  JSON.stringify(value).replace(/#[0-9A-F]{6}/g, (c) => page.dark[c] ?? c));

function merged(layout, changes) {
  const result = { ...layout };
  for (const [name, value] of Object.entries(changes)) {
    const isGroup = typeof value === "object" && !Array.isArray(value);
    result[name] = isGroup ? { ...layout[name], ...value } : value;
  }
  return result;
}

const isNarrow = (name) => byId(name).clientWidth < NARROW;

function layoutOf(name, { layout }) {
  const shown = isNarrow(name) ? merged(layout, layout.meta?.narrow ?? {}) : layout;
  const top = layout.margin?.t ?? page.top;
  return {
    ...shown,
    height: shown.height - top + TOP,
    margin: { ...layout.margin, t: TOP },
    showlegend: false, // the page has its own, which is text and wraps
    template: page.themes[dark.matches ? "dark" : "light"],
  };
}

// What a click on the legend has hidden or shown stays so.
const keep = (name, data) => data.map((trace, k) =>
  ({ ...trace, visible: byId(name).data?.[k]?.visible ?? trace.visible ?? true }));

// ---------------------------------------------------------------- legends

// Corners, degrees turned, and the inner radius of a star.
const SHAPES = {
  square: [4, 45], diamond: [4, 0], "triangle-up": [3, 0], "triangle-down": [3, 180],
  star: [5, 0, 0.45], x: [4, 45, 0.4], circle: [24, 0],
};
const DASHES = { dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3" };

function corners(symbol) {
  const [count, turned, inner] = SHAPES[symbol.replace("-open", "")] ?? SHAPES.circle;
  const radii = inner ? [5.5, 5.5 * inner] : [4.8];
  return Array.from({ length: count * radii.length }, (_, k) => {
    const angle = Math.PI * (2 * k / (count * radii.length) + turned / 180);
    const radius = radii[k % radii.length];
    return `${13 + radius * Math.sin(angle)},${7 - radius * Math.cos(angle)}`;
  }).join(" ");
}

function swatch(trace) {
  const { fillcolor, fillpattern, line, marker, mode = "" } = trace;
  let inner = "";
  if (trace.type === "bar" || trace.fill || trace.stackgroup) {
    const shape = fillpattern?.shape ?? marker?.pattern?.shape ?? "";
    const colour = fillpattern?.bgcolor ?? fillcolor ?? marker.color;
    const over = fillpattern?.bgcolor ? fillpattern.fgcolor : "white";
    inner = `<rect x="6" y="0" width="14" height="14" rx="3" fill="${colour}"/>
      <text x="13" y="11" fill="${over}" text-anchor="middle">${shape}</text>`;
  } else {
    if (mode.includes("lines")) {
      inner += `<line x1="0" x2="26" y1="7" y2="7" stroke="${line.color}"
        stroke-width="2.5" stroke-dasharray="${DASHES[line.dash] ?? ""}"/>`;
    }
    if (mode.includes("markers")) {
      const [open, edge] = [marker.symbol?.endsWith("-open"), marker.line?.color];
      inner += `<polygon points="${corners(marker.symbol ?? "circle")}"
        fill="${open ? "none" : marker.color}"
        stroke="${open ? marker.color : edge ?? "none"}"
        stroke-width="${open ? 2 : 1}"/>`;
    }
  }
  return `<svg width="26" height="14" aria-hidden="true">${inner}</svg>`;
}

function drawLegend(name, { data, layout }) {
  const box = byId(`${name}-legend`);
  box.replaceChildren();
  const named = data.filter((trace) => trace.name && trace.showlegend !== false);
  const isNeeded = named.length > 1 || named[0]?.showlegend;
  if (layout.showlegend === false || !isNeeded) return;
  let row;
  for (const legend of new Set(named.map((trace) => trace.legend ?? "legend"))) {
    row = document.createElement("div");
    row.append(layout[legend]?.title?.text ?? "");
    for (const trace of named.filter((t) => (t.legend ?? "legend") === legend)) {
      row.append(keyOf(name, data, trace));
    }
    box.append(row);
  }
}

function keyOf(name, data, trace) {
  const key = document.createElement("button");
  key.className = "key";
  key.title = "show or hide";
  key.innerHTML = swatch(trace);
  key.append(trace.name);
  const first = data.indexOf(trace);
  const group = trace.legendgroup ?? NaN; // which equals nothing
  const all = data.flatMap((other, k) =>
    k === first || other.legendgroup === group ? [k] : []);
  const look = (hidden) => key.classList.toggle("off", hidden);
  look((byId(name).data?.[first]?.visible ?? trace.visible) === "legendonly");
  key.addEventListener("click", () => {
    const hide = byId(name).data[first].visible !== "legendonly";
    Plotly.restyle(name, { visible: hide ? "legendonly" : true }, all);
    look(hide);
  });
  return key;
}

// ---------------------------------------------------------------- the timeline

// It may have tens of thousands of items, and is drawn window by window: what lies in
// the window or beside it. A view from afar takes the coarser bars that `meta` brings,
// and leaves out marks that would hide them: more than `crowd` in a row.
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

const parsed = (page.figures.timeline?.data ?? []).map(
  ({ x, y, customdata, meta }) => ({
    ...meta,
    rows: new Set(parse({ y }, 1).y).size,
    fine: parse({ x, y, customdata }, meta.stride),
    coarse: meta.coarse && parse(meta.coarse, meta.stride),
  }));

// The colours of the timeline's traces, without their numbers.
const looks = () => inScheme(page.figures.timeline.data.map(
  ({ x, y, customdata, meta, ...look }) => look));

function dataIn(range) {
  const isBar = parsed.map((part) => part.coarse && part.stride > 1);
  const bars = parsed.reduce((sum, part, k) =>
    sum + (isBar[k] ? itemsIn(part.fine, range).length : 0), 0);
  return looks().map((trace, k) => {
    const { fine, coarse, crowd, rows, stride } = parsed[k];
    const drawn = coarse && bars > MANY ? coarse : fine;
    let items = itemsIn(drawn, range, 3 * bars > MANY ? 0 : 1);
    const changed = {};
    if (crowd) {
      const inRow = itemsIn(fine, range).length / (stride > 1 ? 1 : rows);
      const most = crowd * Math.min(1, byId("timeline").clientWidth / 1000);
      if (inRow > most) items = [];
      if (trace.marker) {
        const size = trace.marker.size * Math.min(1, 0.35 * most / inRow);
        changed.marker = { ...trace.marker, size };
      }
    }
    return { ...trace, ...pick(drawn, items), ...changed };
  });
}

const shownRange = () => byId("timeline").layout.xaxis.range.map(Number);

// ---------------------------------------------------------------- drawing

function draw(name, range) {
  const figure = page.figures[name];
  const layout = layoutOf(name, inScheme({ layout: figure.layout }));
  let data;
  if (name === "timeline") {
    layout.xaxis = { ...layout.xaxis, range: range ?? shownRange() };
    data = dataIn(layout.xaxis.range);
  } else {
    data = inScheme(figure.data);
  }
  Plotly.react(name, keep(name, data), layout, settings);
}

function legend(name) {
  const data = name === "timeline" ? looks() : inScheme(page.figures[name].data);
  drawLegend(name, { data, layout: page.figures[name].layout });
}

function save(name) {
  const shown = byId(name);
  const { layout } = inScheme({ layout: page.figures[name].layout });
  const wide = {
    ...layout,
    template: page.themes[dark.matches ? "dark" : "light"],
    paper_bgcolor: getComputedStyle(shown.closest("section")).backgroundColor,
    xaxis: { ...layout.xaxis, range: shown.layout.xaxis.range },
  };
  const filename = `${document.title.replace(/[^\w-]+/g, "-")}-${name}`;
  const size = { width: Math.max(shown.clientWidth, 900), height: layout.height };
  Plotly.downloadImage({ data: shown.data, layout: wide },
    { format: "png", scale: 3, filename, ...size });
}

function press(button) {
  const { from, to, move, zoom } = button.dataset;
  for (const other of button.parentElement.children) other.classList.remove("on");
  if (from) {
    button.classList.add("on");
    draw("timeline", [Number(from), Number(to)]);
    return;
  }
  const whole = document.querySelector(".windows .whole").dataset;
  const [first, last] = [Number(whole.from), Number(whole.to)];
  const [start, end] = shownRange();
  const length = Math.min((end - start) * Number(zoom ?? 1), last - first);
  const middle = (start + end) / 2 + 0.8 * (end - start) * Number(move ?? 0);
  const next = Math.min(Math.max(middle - length / 2, first), last - length);
  draw("timeline", [next, next + length]);
}

// A table or figure that is wider or higher than its box fades out there, and says so.
function watchScrolling(box) {
  const hint = document.createElement("div");
  hint.className = "hint";
  hint.append("scroll sideways for more →");
  box.after(hint);
  const look = () => {
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = box;
    const right = box.scrollWidth - clientWidth;
    const below = box.scrollHeight - clientHeight;
    box.classList.toggle("wide", right > 2);
    box.classList.toggle("more", right - scrollLeft > 2);
    box.classList.toggle("below", below - scrollTop > 2);
    if (right > 2 || below > 2) box.tabIndex = 0; // so that the keyboard scrolls it
  };
  box.addEventListener("scroll", look);
  new ResizeObserver(look).observe(box);
}

async function begin() {
  document.querySelectorAll(".scroll").forEach(watchScrolling);
  if (!window.DecompressionStream) {
    byId("old").hidden = false;
    return;
  }
  const packed = Uint8Array.from(atob(byId("library").textContent), (c) =>
    c.charCodeAt(0));
  const unpacking = new DecompressionStream("gzip");
  const stream = new Blob([packed]).stream().pipeThrough(unpacking);
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  const names = Object.keys(page.figures);
  for (const name of names) {
    draw(name, page.figures[name].layout.xaxis?.range);
    legend(name);
    let narrow = isNarrow(name);
    new ResizeObserver(() => {
      if (narrow !== isNarrow(name)) draw(name);
      narrow = isNarrow(name);
    }).observe(byId(name));
  }
  byId("timeline")?.on?.("plotly_relayout", (change) => {
    const changed = Object.keys(change);
    if (changed.some((key) => key.startsWith("xaxis"))) draw("timeline");
  });
  dark.addEventListener("change", () => names.forEach((name) => {
    draw(name);
    legend(name);
  }));
  for (const button of document.querySelectorAll(".windows button")) {
    button.addEventListener("click", () => press(button));
  }
  for (const button of document.querySelectorAll("button.save")) {
    button.addEventListener("click", () => save(button.dataset.of));
  }
}

begin();
