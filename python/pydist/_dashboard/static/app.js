// Takes the states that the server sends, and shows them. What comes from programs is only ever set as text.
"use strict";

const CALLS_KEPT = 1500, LINES_KEPT = 400, RECENT = 100;
const $ = (id) => document.getElementById(id);

// --- numbers as text

function bytes(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 999.5) return [n < 9.95 && unit !== "B" ? n.toFixed(1) : n.toFixed(0), unit];
    n /= 1000;
  }
  return [n.toFixed(1), "TB"];
}
const size = (n) => bytes(n).join(" ");
function count(n) {
  return n >= 99950 ? `${(n / 1000).toFixed(0)} k` : n >= 9995 ? `${(n / 1000).toFixed(1)} k` : n < 9.95 && n % 1 ? n.toFixed(1) : n.toFixed(0);
}
function duration(s) {
  if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
  if (s < 1) return `${(s * 1e3).toFixed(s < 0.01 ? 1 : 0)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}
function clock(seconds) {
  const date = new Date(seconds * 1000);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");
}

// --- what is known

const known = { number: 0, calls: [], lines: [], history: [], state: null };

function take(state) {
  known.calls.push(...state.calls.filter((call) => call.number > known.number));
  known.lines.push(...state.lines.filter((line) => line.number > known.number));
  known.calls.splice(0, known.calls.length - CALLS_KEPT);
  known.lines.splice(0, known.lines.length - LINES_KEPT);
  if (state.history.length > 1) known.history = state.history;
  else known.history.push(...state.history);
  known.history.splice(0, known.history.length - HISTORY);
  const fresh = state.number > known.number;
  known.number = state.number;
  known.state = state;
  show(state, fresh);
}

function setLink(state, text) {
  $("link").dataset.state = state;
  if ($("link-text").textContent !== text) $("link-text").textContent = text;
  document.body.classList.toggle("lost", state === "lost");
}

// --- helpers for the page

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
/** Keeps the children of a parent in step with items: those that stay keep their elements, focus and hover. */
function keep(parent, items, key, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = old.get(name);
    old.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element !== at) parent.insertBefore(element, at);
    else at = at.nextElementSibling;
    update(element, item);
  }
  for (const element of old.values()) element.remove();
}
/** A row with cells of these classes; their roles are said, as narrow pages lay tables out in another way. */
function cells(row, classes) {
  row.setAttribute("role", "row");
  for (const name of classes) row.append(make("td", name));
  for (const cell of row.cells) cell.setAttribute("role", "cell");
  return row;
}
function meter(fraction, full) {
  const outer = make("span", "meter");
  outer.append(make("i", full ? "full" : ""));
  outer.firstChild.style.width = `${Math.min(Math.max(fraction, 0), 1) * 100}%`;
  return outer;
}
function setMeter(cell, fraction, text) {
  if (!cell.firstChild) cell.append(meter(0), make("span"));
  cell.firstChild.firstChild.style.width = `${Math.min(fraction, 1) * 100}%`;
  setText(cell.lastChild, text);
}

// --- tiles

const TILES = {
  calls: (n) => [count(n), "/s"],
  cpu: (n) => [n.toFixed(0), "%"],
  memory: bytes,
  traffic: (n) => { const [number, unit] = bytes(n); return [number, `${unit}/s`]; },
};
const tiles = {};
for (const tile of document.querySelectorAll(".tile")) {
  const name = tile.dataset.series;
  const entry = { tile, number: tile.querySelector(".number"), unit: tile.querySelector(".unit"), pointed: null };
  entry.spark = new Spark(tile.querySelector(".spark"), (point) => {
    entry.pointed = point;
    showTile(name);
  });
  tiles[name] = entry;
}
function showTile(name) {
  const entry = tiles[name];
  const value = entry && (entry.pointed ? entry.pointed.value : known.history.at(-1)?.[name]);
  if (value === undefined || value === null) return;
  const [number, unit] = TILES[name](value);
  setText(entry.number, number);
  setText(entry.unit, entry.pointed ? `${unit}  ${Math.round(entry.pointed.ago)} s ago` : unit);
}
function showTiles(state) {
  const times = known.history.map((entry) => entry.time);
  for (const name in tiles) {
    tiles[name].spark.set(times, known.history.map((entry) => entry[name]));
    showTile(name);
  }
  const alive = state.processes.filter((p) => p.state !== "gone");
  const total = (name) => alive.reduce((sum, p) => sum + p[name], 0);
  const notes = {
    calls: `${count(total("running"))} running, ${count(total("queued"))} waiting`,
    cpu: `${alive.length} ${alive.length === 1 ? "process" : "processes"}`,
    memory: `${size(total("shared_bytes"))} shared`,
    traffic: `${size(total("waiting_bytes"))} to be sent`,
  };
  for (const note of document.querySelectorAll("[data-note]")) setText(note, notes[note.dataset.note]);
}

// --- workers

let sorting = { by: "id", down: false };
for (const head of document.querySelectorAll("#workers th[data-sort]")) {
  const button = make("button", "", head.textContent);
  button.type = "button";
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const by = head.dataset.sort;
    sorting = { by, down: sorting.by === by ? !sorting.down : head.classList.contains("n") && by !== "id" };
    showSorting();
    if (known.state) showWorkers(known.state);
  });
}
function showSorting() {
  for (const head of document.querySelectorAll("#workers th[data-sort]")) {
    const here = head.dataset.sort === sorting.by;
    head.setAttribute("aria-sort", here ? (sorting.down ? "descending" : "ascending") : "none");
  }
}
showSorting();

function showWorkers(state) {
  const rows = [...state.processes].sort((a, b) => {
    const [x, y] = [a[sorting.by], b[sorting.by]];
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (sorting.down ? -order : order) || a.id - b.id;
  });
  const classes = ["n", "", "", "n", "n cpu", "n", "n", "n", "n", "runs"];
  keep($("workers").tBodies[0], rows, (p) => p.id, () => cells(make("tr"), classes), (row, p) => {
    row.className = `${p.state === "gone" ? "gone" : ""}${p.id === 1 ? " head" : ""}`;
    const [id, kind, host, ospid, cpu, memory, calls, received, sent, runs] = row.cells;
    setText(id, String(p.id));
    if (p.id === 1) id.title = "This program";
    if (!kind.firstChild) kind.append(make("span"));
    kind.firstChild.className = `state ${p.state}`;
    setText(kind.firstChild, p.state);
    kind.title = p.state === "silent" ? `no answer for ${duration(p.silent_for)}` : "";
    setText(host, p.host);
    host.title = p.host;
    setText(ospid, p.ospid ? String(p.ospid) : "–");
    const gone = p.state === "gone";
    setMeter(cpu, p.cpu / 100, gone ? "–" : `${p.cpu.toFixed(0)} %`);
    setText(memory, gone ? "–" : size(p.memory));
    setText(calls, gone ? "–" : p.queued ? `${p.running} + ${count(p.queued)}` : String(p.running));
    setText(received, size(p.received));
    setText(sent, size(p.sent));
    showRuns(runs, p);
  });
  const workers = state.processes.filter((p) => p.id !== 1 && p.state !== "gone").length;
  const gone = state.processes.filter((p) => p.state === "gone").length;
  setText($("n-workers"), `${workers} up${gone ? `, ${gone} gone` : ""} · * this program`);
  $("no-workers").hidden = workers + gone > 0;
}
function showRuns(cell, p) {
  if (cell.childElementCount !== 2) cell.replaceChildren(make("span"), make("span", "for"));
  const first = p.calls[0];
  const text = p.state === "gone" ? p.reason : p.state === "silent" ? `no answer for ${duration(p.silent_for)}` : first ? first.name : "";
  setText(cell.firstChild, text);
  const more = p.running > 1 ? `, ${p.running - 1} more` : "";
  setText(cell.lastChild, first && p.state === "busy" ? ` for ${duration(first.seconds)}${more}` : "");
  cell.classList.toggle("nothing", !text);
  cell.title = p.calls.length ? p.calls.slice(0, 12).map((c) => `${c.name} for ${duration(c.seconds)}`).join("\n") : text;
}

// --- maps, channels, calls, output

function showMaps(state) {
  const maps = [...state.maps].reverse().sort((a, b) => (b.state === "running") - (a.state === "running"));
  keep($("maps"), maps, (m) => `${m.name} ${Math.round(m.began * 10)}`, () => {
    const item = make("li");
    const head = make("div", "map-head"), foot = make("div", "map-foot");
    head.append(make("span", "mono ellipsis"), make("span", "what"));
    foot.append(make("span"), make("span", "left"));
    item.append(head, make("progress"), foot);
    return item;
  }, (item, m) => {
    item.className = m.state;
    const [head, bar, foot] = item.children;
    setText(head.firstChild, m.name);
    head.firstChild.title = m.name;
    setText(head.lastChild, m.total === null ? `${count(m.done)} done` : `${m.done} of ${m.total}`);
    bar.setAttribute("aria-label", `Progress of ${m.name}`);
    if (m.total === null && m.state === "running") bar.removeAttribute("value");
    else { bar.max = m.total || 1; bar.value = m.total === null || m.total === 0 ? 1 : m.done; }
    setText(foot.firstChild, m.rate ? `${count(m.rate)}/s` : "");
    const left = { running: m.eta === null ? duration(m.elapsed) : `${duration(m.eta)} left`, done: `done in ${duration(m.elapsed)}`, stopped: `stopped after ${duration(m.elapsed)}` };
    setText(foot.lastChild, left[m.state]);
  });
  $("no-maps").hidden = maps.length > 0;
}

function showChannels(state) {
  const busy = (c) => c.depth + c.putters + c.takers;
  const channels = [...state.channels].sort((a, b) => busy(b) - busy(a) || a.owner - b.owner).slice(0, 100);
  keep($("channels").tBodies[0], channels, (c) => c.id, () => cells(make("tr"), ["mono", "n", "", "n", "n"]), (row, c) => {
    const [id, owner, depth, putters, takers] = row.cells;
    setText(id, c.open ? c.id : `${c.id} (closed)`);
    setText(owner, String(c.owner));
    if (!depth.firstChild) {
      depth.append(make("span", "depth"));
      depth.firstChild.append(meter(0), make("span"));
    }
    const [gauge, text] = depth.firstChild.children;
    const full = c.capacity !== null && c.depth >= c.capacity && c.capacity > 0;
    gauge.hidden = c.capacity === null;
    gauge.firstChild.className = full ? "full" : "";
    gauge.firstChild.style.width = `${c.capacity ? Math.min(c.depth / c.capacity, 1) * 100 : 0}%`;
    setText(text, c.capacity === null ? `${c.depth} (unbounded)` : `${c.depth} of ${c.capacity}`);
    for (const [cell, n] of [[putters, c.putters], [takers, c.takers]]) {
      setText(cell, String(n));
      cell.className = n ? "n waits" : "n";
    }
  });
  setText($("n-channels"), state.channels.length > 100 ? `100 of ${state.channels.length}` : "");
  $("channels").hidden = channels.length === 0;
  $("no-channels").hidden = channels.length > 0;
}

function showCalls() {
  if (!$("recent").open) return;
  const calls = known.calls.slice(-RECENT).reverse();
  keep($("calls").tBodies[0], calls, (c) => c.number, () => cells(make("tr"), ["mono", "n", "n", "n", "n", ""]), (row, c) => {
    [c.name, String(c.worker), clock(c.began), duration(c.took), String(c.count), c.error ?? "ok"].forEach((text, i) => setText(row.cells[i], text));
    row.cells[5].title = c.error ?? "";
  });
}
$("recent").addEventListener("toggle", showCalls);

let filter = "all";
const FILTERS = { all: () => true, output: (line) => line.kind === "stdout" || line.kind === "stderr", errors: (line) => line.kind !== "stdout" && line.kind !== "joined" };
for (const button of document.querySelectorAll(".filters button")) {
  button.addEventListener("click", () => {
    filter = button.dataset.show;
    for (const other of document.querySelectorAll(".filters button")) other.setAttribute("aria-pressed", String(other === button));
    showOutput();
  });
}
function showOutput() {
  const log = $("output");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const lines = known.lines.filter(FILTERS[filter]);
  keep(log, lines, (line) => line.number, (line) => {
    const row = make("div", line.kind);
    const who = make("span", "who", String(line.worker));
    who.title = `worker ${line.worker}, ${line.kind}`;
    row.append(make("time", "", clock(line.time)), who, make("span", "text", line.text));
    return row;
  }, () => {});
  log.hidden = lines.length === 0;
  setText($("no-output"), filter === "errors" && known.lines.length ? "No errors." : "Nothing has been printed since the dashboard began.");
  $("no-output").hidden = lines.length > 0;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// --- all of it

const timeline = new Timeline($("timeline"), $("legend"), $("tip"));
function show(state, fresh) {
  const { program, host, ospid, version, python, cpus, since } = state.cluster;
  setText($("program"), `${program} on ${host}, pid ${ospid}`);
  document.title = `${program} · pydist`;
  setText($("about"), `pydist ${version} · Python ${python} · ${cpus} usable CPUs on ${host} · watched for ${duration(state.time - since)}${state.dropped ? ` · ${state.dropped} calls too many to show` : ""}`);
  showTiles(state);
  timeline.set(state.time, state.processes, known.calls);
  showWorkers(state);
  showMaps(state);
  showChannels(state);
  if (fresh) {
    showCalls();
    showOutput();
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const name in tiles) tiles[name].spark.make();
  timeline.legend.dataset.names = "-";
  timeline.draw();
  timeline.showLegend();
});

const events = new EventSource("events");
events.addEventListener("message", (event) => {
  setLink("live", "live");
  take(JSON.parse(event.data));
});
events.addEventListener("error", () => setLink("lost", "no connection: the program may have ended"));
