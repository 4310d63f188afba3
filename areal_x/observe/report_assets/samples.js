const NUM_COLOURS = 6;
const SAMPLE_TABS = [["best", "Best"], ["worst", "Worst"], ["failed", "Not scored"], ["first", "From the first step"]];

const inRuns = (runs, length) => { const inside = new Array(length).fill(false); for (const [start, end] of runs) inside.fill(true, start, end); return inside; };

// What is known of each token: its version (null: no engine sampled it), whether it was trained, its log-probability.
function tokenFacts(sample) {
  const length = sample.tokens.length;
  const trained = inRuns(sample.mask || [], length), versions = new Array(length).fill(null);
  for (const [start, end, version] of sample.version_spans || []) versions.fill(version, start, Math.min(end, length));
  let place = 0;
  return sample.tokens.map((text, k) => {
    const sampled = versions[k] !== null;
    const logprob = sampled && sample.logprobs && place < sample.logprobs.length ? sample.logprobs[place++] / 1000 : null;
    return { text: String(text), version: versions[k], trained: trained[k], logprob };
  });
}

// An end-of-line token is shown by a sign and the break itself, an empty one by a sign, so that none is invisible.
const visibleText = (text) => text === "" ? "∅" : text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");

function describeToken(fact, index, sample) {
  const kind = fact.version === null ? "not sampled, not trained"
    : `version ${fact.version} (lag ${Math.max(0, sample.version - fact.version)}), ${fact.trained ? "trained" : "over age: masked from the loss"}`;
  const chance = fact.logprob === null ? "" : ` · log-probability ${fact.logprob.toFixed(3)} (p = ${Math.exp(fact.logprob).toPrecision(3)})`;
  return `token ${index} ${JSON.stringify(fact.text)} · ${kind}${chance}`;
}

function tokenBox(sample, colourBy) {
  const facts = tokenFacts(sample);
  const versions = [...new Set(facts.map((fact) => fact.version).filter((version) => version !== null))].sort((a, b) => a - b);
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const nodes = facts.map((fact) => {
    const node = element("span", {}, visibleText(fact.text));
    if (fact.version === null) node.className = "prompt";
    else if (colourBy === "version") node.style.backgroundColor = `var(--v${fact.version % NUM_COLOURS})`;
    else if (fact.logprob !== null) node.style.backgroundColor = `color-mix(in srgb, var(--v4) ${Math.round(100 * (1 - Math.exp(fact.logprob)))}%, var(--v1))`;
    if (fact.version !== null && !fact.trained) node.classList.add("over-age");
    return node;
  });
  const box = element("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens of this sample" }, ...nodes);
  let chosen = -1;
  const choose = (index) => {
    if (nodes[chosen]) nodes[chosen].classList.remove("chosen");
    chosen = Math.max(0, Math.min(nodes.length - 1, index));
    if (!nodes[chosen]) return;
    nodes[chosen].classList.add("chosen");
    readout.textContent = describeToken(facts[chosen], chosen, sample);
  };
  const point = (event) => { const index = nodes.indexOf(event.target); if (index >= 0) choose(index); };
  box.addEventListener("pointerover", point);
  box.addEventListener("click", point);
  box.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    choose(chosen < 0 ? Math.max(0, facts.findIndex((fact) => fact.version !== null)) : chosen + move);
    if (nodes[chosen]) nodes[chosen].scrollIntoView({ block: "nearest" });
  });
  return [tokenLegend(sample, facts, versions, colourBy), box, readout];
}

function tokenLegend(sample, facts, versions, colourBy) {
  const entry = (background, text) => { const mark = element("i", { class: "box" }); mark.style.background = background; return element("span", {}, mark, text); };
  const entries = [];
  if (facts.some((fact) => fact.version === null)) entries.push(element("span", {}, "grey text: not sampled, masked"));
  if (colourBy === "version") for (const version of versions) entries.push(entry(`var(--v${version % NUM_COLOURS})`, `version ${version}${sample.version > version ? `, lag ${sample.version - version}` : ""}`));
  else entries.push(entry("var(--v1)", "p near 1"), entry("var(--v4)", "p near 0"));
  if (facts.some((fact) => fact.version !== null && !fact.trained)) entries.push(element("span", {}, element("i", { class: "box over-age" }), "hatched: over age, masked"));
  return element("div", { class: "legend" }, ...entries);
}

function sampleCard(sample, colourBy) {
  const hasReward = typeof sample.reward === "number";
  const head = element("div", { class: "sample-head" }, element("strong", {}, hasReward ? `reward ${formatNumber(sample.reward)}` : "no reward"));
  const add = (text, style = "") => head.append(element("span", { class: style }, text));
  if (sample.status !== "ok") add(String(sample.status), "bad");
  for (const [name, value] of Object.entries(sample.parts || {})) if (value !== null) add(`${name} ${formatNumber(value)}`);
  if (typeof sample.advantage === "number") add(`advantage ${sample.advantage.toFixed(2)}`);
  add(`step ${sample.step}`);
  add(`lag ${sample.lag}`);
  if (sample.num_turns > 1) add(`${sample.num_turns} turns`);
  add(sample.stop_reason === "length" ? "stopped by length" : `ended by ${sample.stop_reason}`);
  add(`${(sample.tokens || []).length + (sample.omittedTokens || 0)} tokens`);
  const hasTokens = Array.isArray(sample.tokens) && sample.tokens.length > 0;
  const body = hasTokens ? tokenBox(sample, colourBy) : [element("div", { class: "tokens" }, `${sample.prompt}${sample.completion}`)];
  const card = element("article", { class: "card sample" }, head, ...body);
  if (sample.reason) card.insertBefore(element("p", { class: sample.status === "ok" ? "muted" : "error" }, String(sample.reason)), head.nextSibling);
  if (sample.omittedTokens) card.append(element("p", { class: "muted" }, `${sample.omittedTokens} further tokens are in trajectories.jsonl.`));
  return card;
}

function samples(parent) {
  const tabs = SAMPLE_TABS.filter(([key]) => data.samples[key].length > 0);
  if (tabs.length === 0) { parent.append(element("p", { class: "card empty" }, "This run kept no samples.")); return; }
  let shown = tabs[0][0], colourBy = "version";
  const list = element("div", { id: "sample-panel", role: "tabpanel" });
  const buttons = tabs.map(([key, label]) => element("button", { type: "button", role: "tab", "aria-controls": "sample-panel", onclick: () => { shown = key; draw(); } }, label));
  const colour = element("button", { type: "button", class: "spread", onclick: () => { colourBy = colourBy === "version" ? "probability" : "version"; draw(); } });
  const bar = element("div", { role: "tablist", "aria-label": "Which samples", class: "tabs" }, ...buttons);
  bar.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    shown = tabs[(tabs.findIndex(([key]) => key === shown) + move + tabs.length) % tabs.length][0];
    draw();
    buttons[tabs.findIndex(([key]) => key === shown)].focus();
  });
  function draw() {
    buttons.forEach((button, k) => { const is = tabs[k][0] === shown; button.setAttribute("aria-selected", is); button.tabIndex = is ? 0 : -1; });
    colour.textContent = `Colour by ${colourBy === "version" ? "probability" : "version"}`;
    list.replaceChildren(...data.samples[shown].map((sample) => sampleCard(sample, colourBy)));
  }
  draw();
  parent.append(element("div", { class: "tabs" }, bar, colour), list);
}
