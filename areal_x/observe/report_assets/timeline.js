const LANES = [
  ["generation", "Generation: requests in flight", "var(--blue)", "area"],
  ["scoring", "Scoring: rewards in flight", "var(--orange)", "area"],
  ["reward_model", "Reward models", "var(--orange)", "bars"],
  ["training", "Training", "var(--purple)", "bars"],
  ["weights", "Weight updates", "var(--pink)", "bars"],
  ["evaluation", "Warm start and evaluation", "var(--green)", "bars"],
  ["checkpoint", "Checkpoints", "var(--muted)", "bars"],
];

// Adds the time-weighted mean count of one span to the bins that it overlaps.
function addActivity(bins, from, size, start, end, count) {
  const first = Math.max(0, Math.floor((start - from) / size)), last = Math.min(bins.length - 1, Math.floor((end - from) / size));
  for (let k = first; k <= last; k++) {
    bins[k] += count * Math.max(0, Math.min(end, from + (k + 1) * size) - Math.max(start, from + k * size)) / size;
  }
}

function activityBins(spans, from, to, count) {
  const bins = new Float64Array(count), size = (to - from) / count;
  for (const span of spans) {
    if (span.end < from || span.start > to) continue;
    if (!span.in_flight) { addActivity(bins, from, size, span.start, span.end, 1); continue; }
    const width = (span.end - span.start) / span.in_flight.length;
    span.in_flight.forEach((value, k) => addActivity(bins, from, size, span.start + k * width, span.start + (k + 1) * width, value));
  }
  return bins;
}

// The window to open with: the last seven steps, where the pipeline is in its steady state.
function firstWindow(training, low, high) {
  const starts = [...new Set(training.map((span) => span.start))].sort((a, b) => a - b);
  if (starts.length < 9) return [low, high];
  const names = new Set(training.slice(-40).map((span) => span.name)).size;
  return [starts[Math.max(0, starts.length - 1 - 7 * names)], Math.max(...training.slice(-3).map((span) => span.end))];
}

function timeLine(parent) {
  const { omitted, overlap } = data.timeline;
  const spans = data.timeline.spans.map((span) => (span.lane === "warm_start" ? { ...span, lane: "evaluation" } : span));
  if (spans.length === 0) { parent.append(element("p", { class: "empty" }, "This run has no time line.")); return; }
  const known = LANES.map(([id, label, colour, kind]) => ({ id, label, colour, kind, spans: spans.filter((span) => span.lane === id) }));
  const named = new Set(LANES.map(([id]) => id));
  for (const id of new Set(spans.map((span) => span.lane))) {
    if (!named.has(id)) known.push({ id, label: id, colour: "var(--muted)", kind: "bars", spans: spans.filter((span) => span.lane === id) });
  }
  const lanes = known.filter((lane) => lane.spans.length > 0);
  const low = spans.reduce((best, span) => Math.min(best, span.start), Infinity);
  const high = spans.reduce((best, span) => Math.max(best, span.end), low + 0.001);
  const of = (id) => known.find((lane) => lane.id === id).spans;
  let [from, to] = firstWindow(of("training"), low, high);
  if (overlap !== null) parent.append(element("p", {}, `Generation went on during ${formatShare(Math.floor(overlap * 1000) / 1000)} of the training time. Dashed lines are weight updates: requests stay in flight across them.`));
  if (omitted > 0) parent.append(element("p", { class: "muted" }, `The ${omitted.toLocaleString("en-US")} oldest spans are left out here; timeline.jsonl has all.`));
  const slider = element("input", { type: "range", min: 0, max: 1000, step: 1 });
  const plot = element("div");
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  let width = 0;

  function show(newFrom, newTo) {
    const size = Math.min(high - low, Math.max(newTo - newFrom, 0.02));
    from = Math.min(Math.max(low, newFrom), high - size);
    to = from + size;
    slider.value = high - low - size > 1e-9 ? Math.round(1000 * (from - low) / (high - low - size)) : 0;
    slider.disabled = high - low - size <= 1e-9;
    slider.setAttribute("aria-valuetext", `${from.toFixed(2)} to ${to.toFixed(2)} seconds`);
    draw();
  }
  const zoom = (factor, at = 0.5) => { const size = (to - from) * factor, centre = from + (to - from) * at; show(centre - size * at, centre + size * (1 - at)); };
  const pan = (share) => show(from + share * (to - from), to + share * (to - from));

  function draw() {
    if (width === 0) return;
    const x = (time) => (time - from) / (to - from) * width;
    let top = 0;
    const rows = lanes.map((lane) => {
      const height = lane.kind === "area" ? 58 : 24, row = { lane, top: top + 19, height };
      top += 19 + height + 12;
      return row;
    });
    const height = top + 22;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0,
      "aria-label": `Time line from ${from.toFixed(2)} to ${to.toFixed(2)} seconds. Arrow keys move, plus and minus zoom.` });
    const clip = shape("clipPath", { id: "time-line-clip" });
    clip.append(shape("rect", { x: 0, y: 0, width, height }));
    const body = shape("g", { "clip-path": "url(#time-line-clip)" });
    svg.append(clip, body);
    for (const tick of niceTicks(from, to, Math.max(2, Math.floor(width / 95)))) {
      body.append(shape("line", { class: "gridline", x1: x(tick), x2: x(tick), y1: 4, y2: top }));
      if (x(tick) > 14 && x(tick) < width - 14) svg.append(shape("text", { x: x(tick), y: height - 5, "text-anchor": "middle" }, `${tick} s`));
    }
    for (const row of rows) {
      svg.append(shape("text", { x: 0, y: row.top - 6 }, row.lane.label));
      if (row.lane.kind === "area") drawArea(body, row, width);
      else drawBars(body, row, x);
      body.append(shape("line", { class: "axis", x1: 0, x2: width, y1: row.top + row.height, y2: row.top + row.height }));
    }
    const updates = of("weights").filter((span) => span.end >= from && span.start <= to);
    const crossed = rows.find((row) => row.lane.id === "weights");
    if (crossed && updates.length <= width / 12) {
      for (const span of updates) body.append(shape("line", { x1: x(span.end), x2: x(span.end), y1: 19, y2: crossed.top, stroke: "var(--pink)", "stroke-dasharray": "3 4", "stroke-opacity": 0.75 }));
    }
    const cursor = shape("line", { class: "cursor", y1: 4, y2: top, visibility: "hidden" });
    svg.append(cursor);
    listen(svg, cursor);
    const hadFocus = plot.contains(document.activeElement);
    plot.replaceChildren(svg);
    if (hadFocus) svg.focus({ preventScroll: true });
    readout.textContent = `${from.toFixed(2)} s to ${to.toFixed(2)} s`;
  }

  function drawArea(body, row, width) {
    const count = Math.max(20, Math.floor(width / 2));
    const bins = activityBins(row.lane.spans, from, to, count);
    const highest = Math.max(1e-9, ...bins);
    const at = (k) => row.top + row.height - bins[k] / highest * row.height;
    let path = `M0 ${row.top + row.height}`;
    for (let k = 0; k < count; k++) path += `L${(k / count * width).toFixed(1)} ${at(k).toFixed(1)}L${((k + 1) / count * width).toFixed(1)} ${at(k).toFixed(1)}`;
    path += `L${width} ${row.top + row.height}Z`;
    body.append(shape("path", { d: path, fill: row.lane.colour, "fill-opacity": 0.32, stroke: row.lane.colour, "stroke-width": 1.2 }));
    body.append(shape("text", { x: width, y: row.top - 6, "text-anchor": "end" }, `up to ${highest < 1 ? Number(highest.toFixed(2)) : Math.round(highest * 10) / 10}`));
  }

  function drawBars(body, row, x) {
    const names = [...new Set(row.lane.spans.map((span) => span.name))].sort();
    for (const span of row.lane.spans) {
      if (span.end < from || span.start > to) continue;
      const left = Math.max(x(span.start), -4), wide = Math.max(2, Math.min(x(span.end), width + 4) - left);
      const bar = shape("rect", { x: left, y: row.top, width: wide, height: row.height, rx: Math.min(3, wide / 3), fill: `color-mix(in srgb, ${row.lane.colour} ${[100, 70, 85][names.indexOf(span.name) % 3]}%, var(--ink))` });
      bar.append(shape("title", {}, describe(span)));
      body.append(bar);
      const text = String(span.name);
      if (wide > 8 * text.length + 10) body.append(shape("text", { x: Math.max(left, 0) + 6, y: row.top + row.height / 2 + 4, fill: "var(--card)", "pointer-events": "none" }, text));
    }
  }

  const describe = (span) => `${span.name}, ${span.start.toFixed(3)} s to ${span.end.toFixed(3)} s (${((span.end - span.start) * 1000).toFixed(1)} ms)`;

  function read(time) {
    const texts = lanes.map((lane) => {
      const here = lane.spans.filter((span) => span.start <= time && time <= span.end);
      if (lane.kind === "area") return `${lane.id} ${formatNumber(Math.round(10 * activityBins(here, time, time + (to - from) / width, 1)[0]) / 10)}`;
      return here.length > 0 ? `${lane.id.replace("_", " ")}: ${here[0].name}` : null;
    });
    readout.textContent = [`${time.toFixed(2)} s`, ...texts.filter((text) => text !== null)].join(" · ");
  }

  let grabbed = null;
  function listen(svg, cursor) {
    svg.addEventListener("pointermove", (event) => {
      const place = event.clientX - plot.getBoundingClientRect().left;
      if (grabbed !== null) { const shift = (grabbed.x - event.clientX) / width * (grabbed.to - grabbed.from); show(grabbed.from + shift, grabbed.to + shift); return; }
      cursor.setAttribute("visibility", "visible");
      cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
      read(from + place / width * (to - from));
    });
    svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); });
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - plot.getBoundingClientRect().left) / width);
    }, { passive: false });
    svg.addEventListener("keydown", (event) => {
      const act = { ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1.6), Home: () => show(low, low + to - from), End: () => show(high - to + from, high) }[event.key];
      if (act) { event.preventDefault(); act(); }
    });
  }
  // The svg is replaced while it is dragged, so the drag belongs to its container.
  plot.addEventListener("pointerdown", (event) => { if (event.isPrimary && event.button === 0) { grabbed = { x: event.clientX, from, to }; plot.style.cursor = "grabbing"; } });
  for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { grabbed = null; plot.style.cursor = ""; });

  slider.addEventListener("input", () => { const size = to - from; const start = low + Number(slider.value) / 1000 * (high - low - size); show(start, start + size); });
  const button = (text, label, act) => element("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
  parent.append(element("div", { class: "controls" },
    button("−", "Zoom out", () => zoom(1.6)), button("+", "Zoom in", () => zoom(0.6)),
    button("Whole run", "Show the whole run", () => show(low, high)),
    button("Steady state", "Show the last steps", () => show(...firstWindow(of("training"), low, high))),
    element("label", {}, "Position", slider)), plot, readout);
  drawAtWidth(plot, (now) => { width = now; show(from, to); });
}
