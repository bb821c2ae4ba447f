// It may have tens of thousands of items, and is drawn window by window: what lies in
// the window or beside it. A view from afar takes coarser bars, and leaves out marks
// that would hide them: more than `crowd` in a row.
const MANY = 16000;
let timeline; // its numbers

function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function numbers({ bdata, dtype } = { bdata: "" }) {
  const { buffer } = bytesOf(bdata);
  return dtype === "f8" ? new Float64Array(buffer) : new Float32Array(buffer);
}

const columns = (packed) => Object.fromEntries(
  Object.entries(packed).map(([name, column]) => [name, numbers(column)]));

function parseTimeline({ data, layout }) {
  const marks = data.map(({ x, y, customdata, meta }) => {
    if (!meta.stride) return { ...meta }; // bars
    const part = { x: numbers(x), y: numbers(y), data: numbers(customdata), ...meta };
    return { ...part, rows: new Set(part.y).size };
  });
  const { fine, coarse, workers, half } = layout.meta;
  return { marks, fine: columns(fine), coarse: columns(coarse), workers, half };
}

// Indices of what lies in a window, or beside it within so many of its lengths.
function itemsIn(start, end, [from, to], beside = 0, stride = 1) {
  const [least, greatest] = [from - beside * (to - from), to + beside * (to - from)];
  const items = [];
  for (let i = 0; i < start.length; i += stride) {
    if (end[i] >= least && start[i] <= greatest) items.push(i);
  }
  return items;
}

function pick({ x, y, data, stride }, items) {
  const [pickedX, pickedY] = [x, y].map((all) => {
    const picked = new Float64Array(items.length * stride);
    items.forEach((i, k) => picked.set(all.subarray(i, i + stride), k * stride));
    return picked;
  });
  const width = data.length / x.length;
  const said = (i) => Array.from(data.subarray(i * width, (i + 1) * width));
  return { x: pickedX, y: pickedY, customdata: data.length ? items.map(said) : [] };
}

// Closed outlines, with a gap after each.
function outlines({ row, start, end }, items) {
  const x = new Float64Array(6 * items.length), y = new Float32Array(6 * items.length);
  items.forEach((i, k) => {
    const [low, high] = [row[i] + timeline.half, row[i] - timeline.half];
    x.set([start[i], end[i], end[i], start[i], start[i], NaN], 6 * k);
    y.set([low, low, high, high, low, NaN], 6 * k);
  });
  return { x, y };
}

// Points to be found by the mouse, and what to say of them.
const middles = ({ row, start, end, base, behind }, items) => ({
  x: items.map((i) => (start[i] + end[i]) / 2),
  y: items.map((i) => row[i]),
  customdata: items.map((i) =>
    [timeline.workers[row[i]], base[i], behind[i], end[i] - start[i]]),
});

// The traces of the timeline, without their numbers.
const looks = () => inScheme(page.figures.timeline.data.map(
  ({ x, y, customdata, meta, ...look }) => look));

function dataIn(range) {
  const { fine, coarse } = timeline;
  const count = itemsIn(fine.start, fine.end, range).length;
  const bars = count > MANY ? coarse : fine;
  const beside = 3 * count > MANY ? 0 : 1;
  const shown = itemsIn(bars.start, bars.end, range, beside);
  return looks().map((trace, k) => {
    const part = timeline.marks[k];
    if ("bin" in part) {
      const own = shown.filter((i) => bars.bin[i] === part.bin);
      return { ...trace, ...outlines(bars, own) };
    }
    if ("waits" in part) {
      const own = shown.filter((i) => (bars.behind[i] < 0) === part.waits);
      return { ...trace, ...middles(bars, own) };
    }
    return { ...trace, ...marksIn(part, trace.marker, range, beside) };
  });
}

function marksIn(part, marker, range, beside) {
  const { x, crowd, rows, stride } = part;
  const items = itemsIn(x, x, range, beside, stride);
  if (!crowd) return pick(part, items);
  const inRow = itemsIn(x, x, range, 0, stride).length / (stride > 1 ? 1 : rows);
  const most = crowd * Math.min(1, byId("timeline").clientWidth / 1000);
  const size = marker && marker.size * Math.min(1, 0.35 * most / inRow);
  return {
    ...pick(part, inRow > most ? [] : items),
    ...(marker && { marker: { ...marker, size } }),
  };
}
