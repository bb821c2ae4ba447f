// What draws the figures of a page; they and Plotly stand in it.
const byId = (id) => document.getElementById(id);
let page; // the figures, their themes, the colours of a dark page
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
  byId(name).style.height = `${layout.height}px`; // however Plotly resizes meanwhile
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
  if (page.figures.timeline) timeline = parseTimeline(page.figures.timeline);
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
