// Legends as text of the page, which wraps; a click hides or shows a trace.

// Number of corners, rotation in degrees, and the inner radius of a star.
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
      const colour = marker.color ?? line.color;
      inner += `<polygon points="${corners(marker.symbol ?? "circle")}"
        fill="${open ? "none" : colour}"
        stroke="${open ? colour : edge ?? "none"}"
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
  const group = trace.legendgroup ?? NaN; // NaN equals nothing
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
