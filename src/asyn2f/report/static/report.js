// Draws the figures of the page, which contains them and Plotly.
const byId = (id) => document.getElementById(id);
let page; // the figures, their themes, the colours of a dark page
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const settings = { displayModeBar: false, responsive: true };
const NARROW = 640; // pixels of a figure
const TOP = 14; // margin of a figure on the page; saved figures have their legend there

// ---------------------------------------------------------------- look

// The same with the colours of a dark page, if this is one. Arrays of numbers stay.
function inScheme(value) {
  if (!dark.matches || ArrayBuffer.isView(value)) return value;
  if (typeof value === "string") {
    return value.replace(/#[0-9A-F]{6}/g, (c) => page.dark[c] ?? c);
  }
  if (Array.isArray(value)) {
    return typeof value[0] === "number" ? value : value.map(inScheme);
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(
    ([name, inner]) => [name, name === "bdata" ? inner : inScheme(inner)]));
}

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

// Traces stay hidden or shown as chosen in the legend.
const keep = (name, data) => data.map((trace, k) =>
  ({ ...trace, visible: byId(name).data?.[k]?.visible ?? trace.visible ?? true }));

const shownRange = () => byId("timeline").layout.xaxis.range.map(Number);

// ---------------------------------------------------------------- timeline

function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function numbers({ bdata, dtype }) {
  const { buffer } = bytesOf(bdata);
  return dtype === "f8" ? new Float64Array(buffer) : new Float32Array(buffer);
}

// Draws the bars of the timeline from columns, which are smaller than their outlines.
function expandTimeline({ data, layout }) {
  const { workers, half, bars: packed } = layout.meta;
  const bars = Object.fromEntries(
    Object.entries(packed).map(([name, column]) => [name, numbers(column)]));
  const { row, start, end, base, staleness, bin } = bars;
  const indices = Array.from(row.keys());
  const outlines = (items) => { // closed, with a gap after each
    const x = new Float64Array(6 * items.length), y = new Float32Array(6 * items.length);
    items.forEach((i, k) => {
      const [low, high] = [row[i] + half, row[i] - half];
      x.set([start[i], end[i], end[i], start[i], start[i], NaN], 6 * k);
      y.set([low, low, high, high, low, NaN], 6 * k);
    });
    return { x, y };
  };
  const middles = (items) => ({ // points for the mouse
    x: items.map((i) => (start[i] + end[i]) / 2),
    y: items.map((i) => row[i]),
    customdata: items.map((i) =>
      [workers[row[i]], base[i], staleness[i], end[i] - start[i]]),
  });
  return data.map((trace) => {
    const { bin: own, waits, crowd } = trace.meta ?? {};
    if (own !== undefined) {
      return { ...trace, ...outlines(indices.filter((i) => bin[i] === own)) };
    }
    if (waits !== undefined) {
      const items = indices.filter((i) => (staleness[i] < 0) === waits);
      return { ...trace, ...middles(items) };
    }
    if (crowd) crowds.push({ trace: data.indexOf(trace), times: numbers(trace.x), crowd });
    return trace;
  });
}

const crowds = []; // marks that are hidden where there are too many of them

// Hides marks of which more than a crowd are in view, so that one sees the bars.
function hideCrowds() {
  const [from, to] = shownRange();
  const scale = Math.min(1, byId("timeline").clientWidth / 1000);
  for (const mark of crowds) {
    const inView = mark.times.filter((time) => from <= time && time <= to).length;
    const hidden = inView > mark.crowd * scale;
    if (hidden === mark.hidden) continue;
    mark.hidden = hidden;
    const { opacity = 1, hoverinfo = "all" } = page.figures.timeline.data[mark.trace];
    const look = hidden ? { opacity: 0, hoverinfo: "skip" } : { opacity, hoverinfo };
    Plotly.restyle("timeline", look, [mark.trace]);
  }
}

// ---------------------------------------------------------------- drawing

function draw(name) {
  const layout = layoutOf(name, inScheme({ layout: page.figures[name].layout }));
  if (name === "timeline" && byId(name).layout) {
    layout.xaxis = { ...layout.xaxis, range: shownRange() };
  }
  const data = inScheme(page.figures[name].data);
  byId(name).style.height = `${layout.height}px`; // however Plotly resizes meanwhile
  Plotly.react(name, keep(name, data), layout, settings);
  if (name === "timeline") {
    for (const mark of crowds) mark.hidden = undefined;
    hideCrowds();
  }
}

function show(from, to) {
  Plotly.relayout("timeline", { "xaxis.range": [from, to] });
}

function legend(name) {
  const { data, layout } = page.figures[name];
  drawLegend(name, { data: inScheme(data), layout });
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
    show(Number(from), Number(to));
    return;
  }
  const whole = document.querySelector(".windows .whole").dataset;
  const [first, last] = [Number(whole.from), Number(whole.to)];
  const [start, end] = shownRange();
  const length = Math.min((end - start) * Number(zoom ?? 1), last - first);
  const middle = (start + end) / 2 + 0.8 * (end - start) * Number(move ?? 0);
  const next = Math.min(Math.max(middle - length / 2, first), last - length);
  show(next, next + length);
}

// A table or figure that is larger than its box fades out at the edge, with a hint.
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

async function unpacked(id) {
  const unpacking = new DecompressionStream("gzip");
  const packed = new Blob([bytesOf(byId(id).textContent)]);
  return new Response(packed.stream().pipeThrough(unpacking)).text();
}

async function begin() {
  document.querySelectorAll(".scroll").forEach(watchScrolling);
  if (!window.DecompressionStream) {
    byId("old").hidden = false;
    return;
  }
  page = JSON.parse(await unpacked("figures"));
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  const { timeline } = page.figures;
  if (timeline) timeline.data = expandTimeline(timeline);
  const names = Object.keys(page.figures);
  for (const name of names) {
    draw(name);
    legend(name);
    let narrow = isNarrow(name);
    new ResizeObserver(() => {
      if (narrow !== isNarrow(name)) draw(name);
      narrow = isNarrow(name);
    }).observe(byId(name));
  }
  byId("timeline")?.on?.("plotly_relayout", (change) => {
    if (Object.keys(change).some((key) => key.startsWith("xaxis"))) hideCrowds();
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
