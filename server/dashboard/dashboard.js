// The dashboard: shows pulses as they come, feeds and asks. It keeps nothing but the last minutes on screen and, for
// this tab, the key. All text that comes from the stream is set as text, never as markup.

const SECONDS = 180;
const LONGEST_PAUSE_MS = 4000;
const SHORTEST_PAUSE_MS = 500;
const SPOKEN_EVERY_MS = 15000;

const element = (id) => document.getElementById(id);
const key = () => sessionStorage.getItem("organism-key");
const headers = (more) => (key() ? { Authorization: `Bearer ${key()}`, ...more } : { ...more });
const OCTETS = { "Content-Type": "application/octet-stream" };
const whole = new Intl.NumberFormat("en");

const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const made = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};

class Refused extends Error {}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch {
    throw new Refused("the daemon does not answer; start it with: organism serve");
  }
  if (response.status === 401) askForKey();
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Refused(problem.detail ?? `status ${response.status}`);
  }
  return response;
}

// ---- charts

const SVG = "http://www.w3.org/2000/svg";
const drawn = (tag, attributes) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

class Chart {
  // One number over the last minutes. With a range the axis is fixed; else it grows with the values, from zero.
  constructor({ name, unit, range, digits, read }) {
    Object.assign(this, { name, unit, range, digits, read, values: [], spoken: -Infinity });
    const card = made("div", undefined, "chart");
    this.value = made("span", "–", "value");
    this.svg = drawn("svg", { viewBox: `0 0 ${SECONDS} 100`, preserveAspectRatio: "none", role: "img" });
    this.area = drawn("path", { class: "area" });
    this.trace = drawn("path", { class: "trace" });
    this.svg.append(drawn("path", { class: "base", d: `M0 100H${SECONDS}M0 0H${SECONDS}` }), this.area, this.trace);
    this.top = made("span");
    const scale = made("p", undefined, "scale");
    scale.append(made("span", "3 minutes ago"), this.top, made("span", "now"));
    const line = made("p");
    line.append(this.value, " ", made("span", unit, "unit"));
    card.append(made("h3", name), line, this.svg, scale);
    element("charts").append(card);
  }

  add(pulse) {
    const value = this.read(pulse);
    this.values = [...this.values, value].slice(-SECONDS);
    this.value.textContent = value === null ? "–" : this.digits ? fixed(value, this.digits) : whole.format(Math.round(value));
    this.draw();
    if (performance.now() > this.spoken + SPOKEN_EVERY_MS) this.describe();
  }

  draw() {
    const known = this.values.filter((value) => value !== null);
    const [low, high] = this.range ?? [0, Math.max(...known, 1e-9) * 1.1];
    const first = SECONDS - this.values.length;
    const runs = [];
    let last = null;
    this.values.forEach((value, i) => {
      if (value !== null) {
        const point = [first + i + 0.5, 100 - (100 * (value - low)) / (high - low)];
        if (last === null) runs.push([]);
        runs.at(-1).push(point);
      }
      last = value;
    });
    const path = (run) => run.map(([x, y]) => `${x} ${y.toFixed(2)}`).join("L");
    // A value between two gaps is a dash: it would have no length.
    this.trace.setAttribute("d", runs.map((r) => (r.length > 1 ? `M${path(r)}` : `M${r[0][0] - 0.5} ${r[0][1]}h1`)).join(""));
    this.area.setAttribute("d", runs.map((r) => `M${r[0][0]} 100L${path(r)}L${r.at(-1)[0]} 100Z`).join(""));
    const shown = this.digits ? high.toFixed(high < 1 ? 2 : 1) : whole.format(Math.round(high));
    this.top.textContent = `${this.digits ? low : 0} to ${shown}`;
  }

  describe() {
    this.spoken = performance.now();
    const known = this.values.filter((value) => value !== null);
    const range = known.length
      ? `between ${Math.min(...known).toPrecision(3)} and ${Math.max(...known).toPrecision(3)} ${this.unit}`
      : "no value";
    this.svg.setAttribute("aria-label", `${this.name} over the last three minutes: ${range}`);
  }
}

const charts = [
  { name: "Ingest rate", unit: "chunks a second", read: (p) => p.chunks_per_s },
  { name: "Familiarity, mean", unit: "0 new, 1 lived", range: [0, 1], digits: 3, read: (p) => p.familiarity },
  { name: "Entropy proxy, H = std(h)", unit: "0 to 1", digits: 3, read: (p) => p.entropy },
  { name: "Metabolic β", unit: "gain, 0.1 to 2", range: [0, 2], digits: 3, read: (p) => p.beta },
].map((options) => new Chart(options));

// ---- pulses

function tell(state, text) {
  const node = element("state");
  if (node.textContent !== text) node.textContent = text;
  node.dataset.state = state;
}

let shownGenome = null;

function show(pulse) {
  if (pulse.ready) tell("learning", "learning");
  else tell("recovering", pulse.recovery < 1 ? `recovering, ${Math.floor(100 * pulse.recovery)}%` : "not learning");
  for (const chart of charts) chart.add(pulse);
  element("offset").textContent = whole.format(pulse.offset);
  element("steps").textContent = whole.format(pulse.steps);
  element("queue").textContent = `${whole.format(pulse.queue_bytes)} bytes`;
  element("auroc").textContent = fixed(pulse.recall.auroc);
  element("top1").textContent = fixed(pulse.recall.top1);
  element("error").textContent = fixed(pulse.recall.error);
  element("retraining").textContent = retraining(pulse.retraining);
  showNovel(pulse.novel);
  if (pulse.genome_sha256 !== null) {
    element("genome").textContent = `${pulse.genome_sha256.slice(0, 12)}, generation ${pulse.genome_generation}`;
    if (pulse.genome_sha256 !== shownGenome) {
      shownGenome = pulse.genome_sha256;
      showRule().catch(() => { shownGenome = null; });
    }
  }
}

function retraining(job) {
  if (job === null) return "none";
  if (job.status === "running") return `step ${job.step} of ${job.outer_steps}`;
  if (job.status === "failed") return `failed: ${job.error}`;
  return job.promoted ? "done, the successor took over" : "done, the successor was no better";
}

function showNovel(chunks) {
  const rows = chunks.map((chunk) => {
    const row = made("tr");
    const ago = chunk.age_s < 90 ? `${Math.round(chunk.age_s)} s` : `${Math.round(chunk.age_s / 60)} min`;
    row.append(
      made("td", fixed(chunk.familiarity), "number"),
      made("td", ago, "number"),
      made("td", whole.format(chunk.offset), "number"),
      made("td", chunk.text, "chunk"),
    );
    return row;
  });
  const body = element("novel").tBodies[0];
  if (!rows.length) {
    const row = made("tr");
    const cell = made("td", "nothing new");
    cell.colSpan = 4;
    row.append(cell);
    rows.push(row);
  }
  body.replaceChildren(...rows);
}

async function* events(body) {
  // https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

async function follow() {
  let pause = SHORTEST_PAUSE_MS;
  for (;;) {
    try {
      const response = await fetch("events", { headers: headers() });
      if (response.status === 401) {
        askForKey();
        await new Promise((resolve) => element("key-form").addEventListener("submit", resolve, { once: true }));
        continue;
      }
      if (response.ok) {
        for await (const pulse of events(response.body)) {
          pause = SHORTEST_PAUSE_MS;
          show(pulse);
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) console.error(error); // a TypeError is the network's
    }
    tell("lost", "not connected, trying again…");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

function askForKey() {
  tell("lost", "a key is needed");
  if (key()) element("key-answer").textContent = "That key was refused.";
  element("key-form").hidden = false;
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("organism-key", element("key").value);
  element("key").value = "";
  element("key-answer").textContent = "";
  element("key-form").hidden = true;
});

// ---- feeding and asking

function onSubmit(form, answer, act) {
  element(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const node = element(answer);
    try {
      const shown = await act();
      node.classList.remove("refused");
      node.replaceChildren(...shown);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      node.classList.add("refused");
      node.replaceChildren(error.message);
    }
  });
}

onSubmit("feed-form", "feed-answer", async () => {
  const text = element("feed").value;
  const response = await call("ingest", { method: "POST", body: new TextEncoder().encode(`${text}\n`), headers: OCTETS });
  const receipt = await response.json();
  element("feed").value = "";
  const familiar = receipt.familiarity === null ? "" : `, familiarity before that ${fixed(receipt.familiarity)}`;
  const chunks = receipt.chunks === 1 ? "1 chunk" : `${receipt.chunks} chunks`;
  return [`learned ${chunks}${familiar}; the stream is at offset ${whole.format(receipt.offset)}`];
});

onSubmit("ask-form", "ask-answer", async () => {
  const cue = new TextEncoder().encode(element("cue").value);
  const reply = await (await call("recall", { method: "POST", body: cue, headers: OCTETS })).json();
  return answered(cue, reply);
});

function answered(cue, reply) {
  const head = made("p");
  const meter = made("meter");
  meter.value = reply.familiarity;
  meter.setAttribute("aria-label", "familiarity");
  head.append("familiarity ", made("span", fixed(reply.familiarity), "figure"), " ", meter, ` entropy ${fixed(reply.entropy)}`);
  if (!reply.matches.length) return [head, made("p", "nothing was lived yet")];
  const parts = made("p");
  parts.append("familiar parts: ", marked(cue, reply.matches[0].shared.map(([start, , length]) => [start, length])));
  const table = made("table");
  table.append(made("caption", "Lived chunks most like it; marked: what they share with the cue"));
  const heading = made("tr");
  for (const name of ["similarity", "chunk"]) {
    const cell = made("th", name);
    cell.scope = "col";
    heading.append(cell);
  }
  const body = made("tbody");
  for (const match of reply.matches) {
    const row = made("tr");
    const chunk = made("td");
    chunk.append(marked(bytesOf(match.bytes), match.shared.map(([, start, length]) => [start, length])));
    row.append(made("td", fixed(match.similarity), "number"), chunk);
    body.append(row);
  }
  table.append(made("thead"), body);
  table.tHead.append(heading);
  return [head, parts, table];
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

function marked(bytes, runs) {
  // Bytes as text, runs of them marked; a run never ends in the midst of a character.
  const inside = (at) => at < bytes.length && (bytes[at] & 0xc0) === 0x80;
  const text = (from, to) => new TextDecoder().decode(bytes.subarray(from, to));
  const node = made("code");
  let end = 0;
  for (let [start, length] of runs) {
    let stop = start + length;
    while (inside(start)) start += 1;
    while (stop > start && inside(stop)) stop -= 1;
    if (stop <= start || start < end) continue;
    node.append(text(end, start), made("mark", text(start, stop)));
    end = stop;
  }
  node.append(text(end, bytes.length));
  return node;
}

// ---- the rule

// Blue to red through near white (ColorBrewer RdBu, told apart with any colour vision).
const COLD = [0x21, 0x66, 0xac];
const NONE = [0xf7, 0xf7, 0xf7];
const WARM = [0xb2, 0x18, 0x2b];
const colour = (strength) => {
  const end = strength < 0 ? COLD : WARM;
  return NONE.map((from, i) => Math.round(from + Math.abs(strength) * (end[i] - from)));
};

async function showRule() {
  const rule = await (await call("genome/rule")).json();
  const largest = Math.max(...rule.delta.flat(2).map(Math.abs), 1e-9);
  const maps = rule.w.map((w, level) => heatMap(rule, w, rule.delta[level], largest));
  const legend = made("div", undefined, "legend");
  const scale = made("p", undefined, "bar-scale");
  for (const value of [-largest, 0, largest]) scale.append(made("span", `${value > 0 ? "+" : ""}${value.toFixed(1)}`));
  legend.append(made("div", undefined, "bar"), scale);
  element("maps").replaceChildren(...maps, legend);
  const rows = rule.terms.slice(0, 8).map((term) => {
    const row = made("tr");
    const sign = term.coefficient > 0 ? "+" : "";
    row.append(
      made("td", term.name),
      made("td", `${sign}${term.coefficient.toFixed(3)}`, "number"),
      made("td", `${Math.round(100 * term.share)}%`, "number"),
    );
    return row;
  });
  element("terms").tBodies[0].replaceChildren(...rows);
  element("terms").caption.textContent =
    rule.r_squared === 1 ? "Leading terms" : `Leading terms of a fit, R² = ${rule.r_squared.toFixed(3)}`;
}

function heatMap(rule, w, delta, largest) {
  const canvas = made("canvas");
  canvas.width = rule.post.length;
  canvas.height = rule.pre.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  delta.forEach((row, i) => row.forEach((value, j) => {
    // Pre grows upwards. The square root shows what is small beside what is large.
    const at = 4 * ((rule.pre.length - 1 - i) * canvas.width + j);
    image.data.set([...colour(Math.sign(value) * Math.sqrt(Math.abs(value) / largest)), 255], at);
  }));
  context.putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  const grows = delta.flat().filter((value) => value > 0).length / delta.flat().length;
  const [low, high] = [rule.post[0], rule.post.at(-1)].map((value) => value.toFixed(1));
  canvas.setAttribute("aria-label", `Δw at w = ${w}: the synapse grows in ${Math.round(100 * grows)}% of the map`);
  const figure = made("figure");
  figure.append(made("figcaption", `w = ${w}`), canvas, made("figcaption", `across: post, up: pre, ${low} to ${high}`));
  return figure;
}

follow();
