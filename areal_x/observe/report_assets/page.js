const STATUS_TEXT = {
  ok: "scored", trained: "trained", not_applicable: "reward not applicable", timeout: "reward timed out", crash: "reward worker crashed",
  error: "reward raised", rejected: "rejected on purpose", failed: "episode failed", cancelled: "cancelled", not_scored: "not scored",
};

function outcomes(parent) {
  const { rows, isWhole } = data.outcomes;
  if (rows.length === 0) { parent.append(element("p", { class: "empty" }, "This run counted no outcomes.")); return; }
  const total = rows.reduce((sum, [, , count]) => sum + count, 0);
  const body = rows.map(([status, reason, count]) => element("tr", {},
    element("td", {}, STATUS_TEXT[status] || status), element("td", {}, reason || "–"),
    element("td", { class: "number" }, count.toLocaleString("en-US")), element("td", { class: "number" }, formatShare(count / total))));
  parent.append(element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Outcome"), element("th", { scope: "col" }, "Reason"), element("th", { scope: "col", class: "number" }, "Samples"), element("th", { scope: "col", class: "number" }, "Share"))),
    element("tbody", {}, ...body))),
    element("p", { class: "muted" }, isWhole ? "All samples of the run. A failure is never counted as a reward of 0." : "Counted over the kept samples only: the metrics hold no outcomes."));
}

function charts(parent) {
  const evaluations = Object.entries(data.accuracy), several = Object.entries(data.severalSamples);
  const tones = ["var(--green)", "var(--teal)", "var(--pink)"];
  lineChart(parent, { title: "Mean reward", range: [0, 1], series: [{ name: "reward", points: data.series.reward, colour: "var(--blue)", smooth: 5 }], note: data.series.reward.length > 8 ? "Bold: mean of five points." : "" });
  lineChart(parent, { title: "Held-out accuracy", range: [0, 1], series: evaluations.map(([name, points], k) => ({ name, points, colour: tones[k % tones.length], markers: points.length < 40 })) });
  lineChart(parent, { title: "Held-out, several samples", range: [0, 1], series: several.map(([name, points], k) => ({ name, points, colour: ["var(--teal)", "var(--purple)", "var(--orange)", "var(--pink)"][k % 4], markers: points.length < 40 })) });
  const parts = Object.entries(data.parts), colours = ["var(--orange)", "var(--purple)", "var(--pink)", "var(--teal)", "var(--green)", "var(--blue)"];
  lineChart(parent, { title: "Parts of the reward", range: [0, 1], series: parts.map(([name, points], k) => ({ name, points, colour: colours[k % colours.length], smooth: 5 })) });
  lagChart(parent);
  lineChart(parent, { title: "Fraction of bound", range: [0, 1], series: [{ name: "fraction of bound", points: data.series.bound, colour: "var(--teal)", smooth: 5 }] });
  lineChart(parent, { title: "Samples per second", series: [{ name: "samples per second", points: data.series.speed, colour: "var(--orange)", smooth: 5 }] });
  lineChart(parent, { title: "Loss", series: [{ name: "loss", points: data.series.loss, colour: "var(--purple)", smooth: 5 }] });
  lineChart(parent, { title: "Tokens masked as over age", format: formatShare, series: [{ name: "masked", points: data.series.masked, colour: "var(--red)" }] });
  if (parent.children.length === 0) parent.append(element("p", { class: "card empty" }, "No step was finished, so there is nothing to draw yet."));
}

// The curves as numbers, for those who cannot or do not want to read them off a picture. Built when it is opened.
function stepTable(parent) {
  const columns = [["reward", data.series.reward], ...Object.entries(data.parts), ...Object.entries(data.accuracy).map(([name, points]) => [`accuracy, ${name}`, points]), ...Object.entries(data.severalSamples),
    ["loss", data.series.loss], ["samples/s", data.series.speed], ["fraction of bound", data.series.bound], ["masked share", data.series.masked]].filter(([, points]) => points.length > 0);
  if (columns.length === 0) return;
  const values = columns.map(([, points]) => new Map(points));
  const steps = [...new Set(columns.flatMap(([, points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  const details = element("details", { class: "card" }, element("summary", {}, "The same as a table"));
  details.addEventListener("toggle", () => {
    const cell = (value) => element("td", { class: "number" }, value === undefined ? "" : formatNumber(value));
    const rows = steps.map((step) => element("tr", {}, element("th", { scope: "row" }, String(step)), ...values.map((known) => cell(known.get(step)))));
    const heads = columns.map(([name]) => element("th", { scope: "col", class: "number" }, name));
    details.append(element("div", { class: "scroll tall", tabindex: 0 }, element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "step"), ...heads)), element("tbody", {}, ...rows))));
  }, { once: true });
  parent.append(details);
}

charts(document.getElementById("charts"));
stepTable(document.getElementById("curves"));
timeLine(document.getElementById("timeline"));
samples(document.getElementById("sample-list"));
outcomes(document.getElementById("outcome-table"));
