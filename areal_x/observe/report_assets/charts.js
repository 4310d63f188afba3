"use strict";
// Text from models enters the page only through textContent and attributes set by name, never as markup.
const data = JSON.parse(document.getElementById("run-data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(name, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "fill" || key === "stroke") node.style[key] = value;
    else node.setAttribute(key, value);
  }
  if (text !== null) node.textContent = text;
  return node;
}

// Redraws when the width changes, and only then: a redraw at every height change would call itself.
function drawAtWidth(container, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(container.clientWidth);
    if (now > 0 && now !== width) { width = now; draw(now); }
  }).observe(container);
}

function niceTicks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const size = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((value) => span / value <= count + 0.01);
  const ticks = [];
  for (let k = Math.ceil(low / size - 1e-9); k * size <= high + size * 1e-6; k++) ticks.push(Number((k * size).toPrecision(12)));
  return ticks;
}

function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 1) return String(Number(value.toFixed(3)));
  if (size >= 0.001) return String(Number(value.toFixed(size >= 0.01 ? 3 : 4)));
  return value.toExponential(1);
}

const formatShare = (value) => `${Number((100 * value).toFixed(2))}%`;

function smoothed(points, width) {
  let sum = 0;
  return points.map(([x, y], k) => {
    sum += y - (k >= width ? points[k - width][1] : 0);
    return [x, sum / Math.min(k + 1, width)];
  });
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle; else high = middle;
  }
  return x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
}

// series: [{name, points, colour, smooth, markers}]
function lineChart(parent, { title, series, format = formatNumber, range = null, note = "" }) {
  const known = series.filter((one) => one.points.length > 0);
  if (known.length === 0) return;
  const plot = element("div");
  const readout = element("p", { class: "readout", "aria-live": "polite" }, note);
  const legend = element("div", { class: "legend" }, ...(known.length > 1 ? known.map((one) => {
    const mark = element("i");
    mark.style.background = one.colour;
    return element("span", {}, mark, one.name);
  }) : []));
  parent.append(element("div", { class: "card" }, element("div", { class: "chart-head" }, element("h3", {}, title), legend), plot, readout));
  const xs = known.flatMap((one) => one.points.map((point) => point[0]));
  const ys = known.flatMap((one) => one.points.map((point) => point[1]));
  const xLow = Math.min(...xs), xHigh = Math.max(...xs);
  let [low, high] = range && Math.min(...ys) >= range[0] && Math.max(...ys) <= range[1] ? range : [Math.min(...ys), Math.max(...ys)];
  if (low === high) { low -= Math.abs(low) * 0.1; high += Math.abs(high) * 0.1 || 1; }
  else if (!range) { const room = (high - low) * 0.06; low = low >= 0 && low - room < 0 ? 0 : low - room; high += room; }
  const steps = [...new Set(xs)].sort((a, b) => a - b);
  let chosen = -1;
  drawAtWidth(plot, (width) => {
    const height = 230, left = 48, right = 14, top = 10, bottom = 28;
    const x = (value) => left + (xHigh === xLow ? 0.5 : (value - xLow) / (xHigh - xLow)) * (width - left - right);
    const y = (value) => height - bottom - (value - low) / (high - low) * (height - top - bottom);
    const summary = known.map((one) => `${one.name} from ${format(one.points[0][1])} to ${format(one.points.at(-1)[1])}`).join("; ");
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0, "aria-label": `${title}: ${summary}` });
    for (const tick of niceTicks(low, high, 5)) {
      svg.append(shape("line", { class: "gridline", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      svg.append(shape("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
    }
    for (const tick of niceTicks(xLow, xHigh, Math.max(2, Math.floor(width / 80))).filter(Number.isInteger)) {
      svg.append(shape("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, tick));
    }
    svg.append(shape("text", { x: left - 8, y: height - 8, "text-anchor": "end" }, "step"));
    svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    const path = (points) => points.map(([a, b], k) => `${k ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    for (const one of known) {
      const line = (points, extra) => svg.append(shape("path", { d: path(points), fill: "none", stroke: one.colour, "stroke-linejoin": "round", ...extra }));
      if (one.smooth && one.points.length > 8) {
        line(one.points, { "stroke-width": 1, "stroke-opacity": 0.3 });
        line(smoothed(one.points, one.smooth), { "stroke-width": 2.2 });
      } else line(one.points, { "stroke-width": one.markers ? 1.5 : 2 });
      if (one.markers || one.points.length === 1) {
        for (const [a, b] of one.points) svg.append(shape("circle", { cx: x(a), cy: y(b), r: 4.5, fill: one.colour, stroke: "var(--card)", "stroke-width": 1.5 }));
      }
    }
    const cursor = shape("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(cursor);
    const choose = (index) => {
      chosen = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[chosen];
      cursor.setAttribute("visibility", "visible");
      cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step));
      readout.textContent = `step ${step}: ` + known.map((one) => {
        const [at, value] = nearest(one.points, step);
        return `${one.name} ${format(value)}${at === step ? "" : ` (step ${at})`}`;
      }).join(" · ");
    };
    const clear = () => { chosen = -1; cursor.setAttribute("visibility", "hidden"); readout.textContent = note; };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const value = xLow + (event.clientX - box.left - left) / (width - left - right) * (xHigh - xLow);
      choose(steps.indexOf(nearest(steps.map((step) => [step]), value)[0]));
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      choose(chosen < 0 && move === 1 ? 0 : chosen < 0 && move === -1 ? steps.length - 1 : chosen + move);
    });
    plot.replaceChildren(svg);
  });
}

function lagChart(parent) {
  if (data.lagCounts.length === 0) return;
  const plot = element("div");
  const bound = data.maxStaleness;
  const total = data.lagCounts.reduce((sum, [, count]) => sum + count, 0) || 1;
  const note = Number.isInteger(bound) ? `The dashed line is the bound: ${bound} version${bound === 1 ? "" : "s"}.` : "";
  parent.append(element("div", { class: "card" }, element("h3", {}, "Lag of trained tokens (versions behind)"), plot, element("p", { class: "readout" }, note)));
  const last = Math.max(...data.lagCounts.map(([lag]) => lag), Number.isInteger(bound) ? bound : 0);
  const highest = Math.max(...data.lagCounts.map(([, count]) => count)) / total;
  drawAtWidth(plot, (width) => {
    const height = 230, left = 48, right = 14, top = 22, bottom = 28;
    const slot = (width - left - right) / (last + 1.3);
    const y = (share) => height - bottom - share / highest * (height - top - bottom);
    const label = data.lagCounts.map(([lag, count]) => `lag ${lag}: ${formatShare(count / total)}`).join(", ");
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Share of trained tokens by lag. ${label}. ${note}` });
    for (const tick of niceTicks(0, highest, 4)) {
      svg.append(shape("line", { class: "gridline", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      svg.append(shape("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, formatShare(tick)));
    }
    svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    const counts = new Map(data.lagCounts);
    const every = Math.ceil(28 / slot);
    for (let lag = 0; lag <= last; lag++) {
      const middle = left + (lag + 0.6) * slot, share = (counts.get(lag) || 0) / total;
      const bar = shape("rect", { x: middle - slot * 0.36, width: slot * 0.72, y: y(share), height: Math.max(0, height - bottom - y(share)), rx: 3, fill: "var(--blue)" });
      bar.append(shape("title", {}, `lag ${lag}: ${formatShare(share)}, ${(counts.get(lag) || 0).toLocaleString("en-US")} tokens`));
      svg.append(bar);
      if (slot > 44) svg.append(shape("text", { class: "strong", x: middle, y: y(share) - 6, "text-anchor": "middle" }, `${(100 * share).toFixed(1)}%`));
      if (lag % every === 0) svg.append(shape("text", { x: middle, y: height - 8, "text-anchor": "middle" }, lag));
    }
    if (Number.isInteger(bound)) {
      const at = left + (bound + 1.1) * slot;
      svg.append(shape("line", { x1: at, x2: at, y1: top - 12, y2: height - bottom, stroke: "var(--red)", "stroke-width": 1.5, "stroke-dasharray": "4 3" }));
    }
    plot.replaceChildren(svg);
  });
}
