// The page of a fleet: it draws what the server sends twice a second, and asks before it changes anything.
// Names, texts and tracebacks come from calls: they are only ever set as text.
"use strict";

const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
const MAY_CHANGE = meta("changes") === "true";
const CSRF = meta("csrf");
const ROW = 30;
const VIEWS = [["now", "Now"], ["calls", "Calls"], ["timeline", "Timeline"], ["failures", "Failures"], ["atasks", "Atasks"],
  ["workers", "Workers"], ["queues", "Queues"], ["runs", "Runs"]];

let state = null;              // the last message, without its calls
const calls = new Map();       // id -> call
const folded = new Set();      // ids whose children are hidden
const opened = new Set();      // keys of failures that are unfolded
let view = "now", chosen = null, filter = "", skew = 0, away = false, wantReset = false;

// -- elements

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (key === "class") node.className = value;
    else if (key === "style") Object.assign(node.style, value);  // the content policy refuses a style attribute
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, typeof value === "string" ? plain(value) : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(typeof child === "string" ? plain(child) : child);
  return node;
}
// Characters that are not seen, or that turn the order of others around, are shown as their numbers.
const UNSEEN = /(?![\t\n\r\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu;
const plain = (text) => text.replace(UNSEEN, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);
const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const $ = (id) => document.getElementById(id);
const short = (id) => (id.length > 10 ? id.slice(0, 8) : id);
const now = () => Date.now() / 1000 - skew;

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 0.001) return `${Math.max(0, value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  if (value < 7200) return `${Math.floor(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}
const clock = (time) => new Date(time * 1000).toLocaleTimeString();
const button = (text, action, kind = "button") => el("button", { type: "button", class: kind, onclick: action }, text);
const idLink = (id) => el("button", { type: "button", class: "link id", title: id, onclick: () => showCall(id) }, short(id));

// -- what comes in

function take(message) {
  if (message.full) calls.clear();
  for (const id of message.removed) calls.delete(id);
  for (const call of message.calls) calls.set(call.id, call);
  skew = Date.now() / 1000 - message.now;
  delete message.calls;
  state = message;
  away = false;
  schedule();
}

let source = null, retry = 0;
function listen() {
  source = new EventSource("api/stream");
  source.onmessage = (event) => { retry = 0; take(JSON.parse(event.data)); };
  source.onerror = () => {
    source.close();
    away = true;
    schedule();
    setTimeout(listen, Math.min(3000, 500 * 2 ** retry++));
  };
}

const PRESS_MS = 5000;
let drawing = false, pressed = -PRESS_MS;
function schedule() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

// -- the frame around the views

function draw() {
  if (performance.now() - pressed < PRESS_MS) return;  // a click counts only where what was pressed is still there
  const bad = away || !state || !state.connected;
  const status = $("state");
  const words = away ? "the page's server is away; trying again" : !state ? "connecting" : state.connected ? "watching" : "not connected";
  if (status.textContent !== words) status.textContent = words;
  status.className = bad ? "bad" : "good";
  drawTabs();
  if (!state) return;
  const parts = [`watching since ${clock(state.since)}`];
  parts.push(state.sample < 1 ? `one call tree in ${Math.round(1 / state.sample)} is watched` : "every call is watched");
  if (state.dropped) parts.push(`${counted(state.dropped, "event")} dropped by busy workers`);
  if (state.gaps) parts.push(`${counted(state.gaps, "event")} lost on the way`);
  if (state.unshown) parts.push(`${counted(state.unshown, "call")} beyond the first ${calls.size} not shown`);
  if (state.note) parts.push(state.note);
  $("watch").textContent = plain(parts.join(" · "));
  const active = document.activeElement;
  if (view === "calls" && $("list")) { drawList(); return; }
  const drawnFrom = view + JSON.stringify(DATA[view] ? DATA[view]() : Math.random());
  if (drawnFrom === drawnLast && $("view").children.length) return;
  drawnLast = drawnFrom;
  const place = focusKey(active);
  const top = $("view").scrollTop;
  const drawn = DRAW[view]();
  if (drawn) $("view").replaceChildren(...drawn);
  $("view").scrollTop = top;
  if (place) document.querySelector(`[data-key="${CSS.escape(place)}"]`)?.focus();
}
const focusKey = (node) => ($("view").contains(node) ? node.dataset.key : null);

function drawTabs() {
  const counts = { now: state?.wrong.length, calls: state?.live, failures: state?.failures.length, workers: state?.workers.length,
    queues: state?.queues.length, atasks: state?.tasks.length, runs: state?.runs.length };
  const tabs = $("tabs");
  if (!tabs.children.length) {
    for (const [key, name] of VIEWS) {
      tabs.append(el("button", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": "view", onclick: () => go(key) },
        el("span", {}, name), el("span", { class: "count", hidden: "" })));
    }
    tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = VIEWS.findIndex(([key]) => key === view);
      go(VIEWS[(at + step + VIEWS.length) % VIEWS.length][0]);
      $(`tab-${view}`).focus();
    });
  }
  for (const [key] of VIEWS) {
    const tab = $(`tab-${key}`), count = tab.lastChild, number = counts[key] || 0;
    tab.setAttribute("aria-selected", String(key === view));
    tab.tabIndex = key === view ? 0 : -1;
    count.hidden = !number;
    count.textContent = number > 9999 ? "9999+" : number;
    count.className = (key === "now" || key === "failures") && number ? "count bad" : "count";
  }
}

function go(key, id) {
  location.hash = id ? `${key}/${encodeURIComponent(id)}` : key;
}
function follow() {
  const [key, id] = location.hash.slice(1).split("/");
  view = VIEWS.some(([name]) => name === key) ? key : "now";
  try { chosen = id ? decodeURIComponent(id) : chosen; } catch { /* a link that was cut */ }
  $("view").setAttribute("aria-labelledby", `tab-${view}`);
  $("view").replaceChildren();
  $("view").classList.toggle("filled", view === "calls");
  wantReset = Boolean(id);
  schedule();
}

// -- tables

// What a view is drawn from: it is left alone while that is the same, so that a text can be read and selected.
let drawnLast = "";
const DATA = { now: () => [state.wrong, state.tasks.map((task) => task.rate), tally(), state.workers.length], failures: () => state.failures,
  atasks: () => state.tasks, workers: () => state.workers.map(({ seen, ...rest }) => rest), queues: () => [state.queues, state.dead],
  runs: () => [state.runs, state.runs_note, state.runs.map((run) => calls.get(run.id)?.note)] };
function tally() {
  const counted = { running: 0, waiting: 0, parked: 0 };
  for (const call of calls.values()) counted[call.state] = (counted[call.state] || 0) + 1;
  return counted;
}

function table(heads, rows, empty) {
  if (!rows.length) return el("p", { class: "soft" }, empty);
  const head = heads.map((name) => el("th", { class: name.startsWith("#") ? "number" : null, scope: "col" }, name.replace("#", "")));
  const body = rows.map((cells) => el("tr", {}, cells.map((cell, index) => {
    const number = heads[index].startsWith("#");
    return el("td", { class: number ? "number" : index === 0 ? "wide" : null, "data-head": heads[index].replace("#", "") }, cell ?? "");
  })));
  return el("div", { class: "panel scroll" }, el("table", { class: "stack" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

const DRAW = {
  now() {
    const counted = tally();
    const rate = state.tasks.reduce((sum, task) => sum + task.rate, 0);
    const figure = (value, text) => el("div", { class: "figure" }, el("b", {}, String(value)), el("span", {}, text));
    const wrong = state.wrong.map((item) => el("li", {},
      el("span", { class: `tag ${item.what}` }, { failure: "failed", queue: "queue", worker: "worker", slow: "slow", viewer: "viewer" }[item.what]),
      el("span", {}, item.id && item.what !== "worker" ? linkOf(item) : item.text),
      item.count > 1 ? el("span", { class: "soft" }, `${item.count} times`) : null,
      item.at ? el("span", { class: "soft", style: { marginLeft: "auto" } }, clock(item.at)) : null));
    return [
      el("div", { class: "figures" }, figure(rate.toFixed(rate < 10 ? 1 : 0), "calls ended a second"), figure(counted.running, "running"),
        figure(counted.waiting, "waiting"), figure(counted.parked, "parked, awaiting others"), figure(state.workers.length, "workers")),
      el("section", { class: "panel", "aria-label": "Wrong now" }, wrong.length ? el("ul", { class: "wrong" }, wrong)
        : el("p", { class: "fine" }, "Nothing is wrong now.")),
    ];
  },

  calls() {
    const search = el("input", { type: "search", id: "search", placeholder: "Search by atask, id, worker, state", "aria-label": "Search calls", value: filter });
    search.addEventListener("input", () => { filter = search.value; drawList(); });
    const list = el("div", { id: "list", class: "panel", tabindex: "0", role: "tree", "aria-label": "Calls; arrow keys move, Enter opens" });
    list.addEventListener("scroll", drawList);
    list.addEventListener("keydown", keys);
    setTimeout(drawList);
    return [el("div", { class: "bar" }, search, el("span", { id: "shown", class: "soft" }),
      button("Fold all", () => { for (const call of calls.values()) folded.add(call.id); drawList(); }),
      button("Unfold all", () => { folded.clear(); drawList(); })), list];
  },

  timeline() { return drawTimeline(); },

  failures() {
    return state.failures.length ? state.failures.map((failure) => {
      const key = `${failure.task} ${failure.type} ${failure.first}`;
      const node = el("details", { class: "panel" },
        el("summary", { "data-key": key }, el("span", { class: "bad" }, failure.type), ` in ${failure.task}`, failure.count > 1 ? `, ${failure.count} times` : "",
          el("span", { class: "soft" }, `, last at ${clock(failure.last)} on ${failure.worker || "an unknown worker"}, call `), idLink(failure.id)),
        el("pre", { tabindex: "0" }, failure.traceback || `No traceback: the call ended as ${failure.status}.`));
      node.open = opened.has(key);
      node.addEventListener("toggle", () => (node.open ? opened.add(key) : opened.delete(key)));
      return node;
    }) : [el("p", { class: "soft" }, "No call has failed since this page watches.")];
  },

  atasks() {
    return [table(["Atask", "#Running", "#A second", "#p50", "#p95", "#Wait p95", "#Ended", "#Failed"],
      state.tasks.map((task) => [el("button", { type: "button", class: "link", "data-key": task.task, onclick: () => { filter = task.task; go("calls"); } }, task.task),
        task.running, task.rate.toFixed(1), seconds(task.p50), seconds(task.p95), seconds(task.wait95), task.ended,
        el("span", { class: task.failed ? "bad" : null }, String(task.failed))]), "No call has begun since this page watches.")];
  },

  workers() {
    return [table(["Worker", "Host", "#Running", "#Parked", "#Waiting", "#Slots", "#Loop lag", "Queues", "Version", "State"],
      state.workers.map((worker) => [el("span", { class: "mono" }, worker.worker), `${worker.host ?? ""} ${worker.pid ?? ""}`, worker.running, worker.parked, worker.waiting, worker.slots,
        seconds(worker.lag), (worker.queues || []).join(", "), worker.version,
        el("span", { class: worker.silent ? "bad" : worker.draining ? "wait" : "good" }, worker.silent ? "silent" : worker.draining ? "draining" : "serving")]), "No worker has been heard of yet.")];
  },

  queues() {
    const heads = ["Queue", "#Waiting", "#Workers", "State"];
    if (MAY_CHANGE) heads.push("Change");
    const rows = state.queues.map((queue) => {
      const words = queue.paused ? "paused" : queue.consumers ? "served" : "no worker";
      const cells = [el("span", { class: "mono" }, queue.queue), queue.ready, queue.consumers, el("span", { class: words === "served" ? "good" : "bad" }, words)];
      if (MAY_CHANGE) cells.push(el("span", { class: "buttons" }, queueButton(queue.paused ? "resume" : "pause", queue), queueButton("purge", queue)));
      return cells;
    });
    const drawn = [table(heads, rows, "No queue is known yet.")];
    if (state.dead) {
      drawn.push(el("p", {}, `${counted(state.dead, "dead message")} could be neither read nor answered: atasks dead lists them. `,
        MAY_CHANGE ? changeButton("retry", ["all"], "dead") : null));
    }
    return drawn;
  },

  runs() {
    const field = el("input", { type: "search", id: "run", "data-key": "run", placeholder: "Id of a submitted call or run", "aria-label": "Id of a submitted call or run", value: wantedRun });
    field.addEventListener("input", () => { wantedRun = field.value; });
    field.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); open(); } });  // else it would press the dialog's button
    const open = () => { if (field.value.trim()) showRun(field.value.trim()); };
    const bar = el("div", { class: "bar" }, field, button("Show run", open));
    if (state.runs_note) return [bar, el("p", { class: "soft" }, `No list: ${state.runs_note}.`)];
    return [bar, table(["Run", "Atask", "State", "Stages", "Progress", "Submitted", "#Took", "Worker"],
      state.runs.map((run) => [el("button", { type: "button", class: "link id", title: run.id, "data-key": `run ${run.id}`, onclick: () => showRun(run.id) }, short(run.id)), run.task,
        el("span", { class: run.state === "open" ? null : run.state === "value" ? "good" : "bad" }, run.state), run.stages ? stageBar(run.stages) : "", calls.get(run.id)?.note ?? "",
        when(run.submitted), run.ended ? seconds(run.ended - Math.max(run.submitted, run.due)) : "", el("span", { class: "mono" }, run.worker)]), "Nothing that was submitted is on record.")];
  },
};
let wantedRun = "";
const when = (time) => (now() - time < 86400 ? clock(time) : new Date(time * 1000).toLocaleString());
function stageBar([done, all]) {
  return el("span", {}, el("progress", { max: all, value: done, "aria-label": "Stages on record" }), ` ${done} of ${all}`);
}

const CHANGES = {
  cancel: ["Cancel call", "Cancel this call?", "It ends in CallCancelled at its caller, and so do the calls that it awaits."],
  pause: ["Pause", "Pause this queue?", "Workers take no new calls of it until it is resumed, those that come later too. Calls that have begun end."],
  resume: ["Resume", "Resume this queue?", "Workers take its calls again."],
  purge: ["Purge", "End all calls that wait in this queue?", "They end in CallCancelled at their callers. Calls that a worker has go on."],
  retry_run: ["Retry run", "Run again what has failed?", "It goes on under the same id: who waits for it waits for the new run. What is on record is not called again."],
  drop_run: ["Drop run", "Forget the record?", "Nobody learns any more how it ends. A call that runs goes on."],
  retry: ["Retry all", "Retry the dead messages?", "Each goes back to the queue that it came from."],
};

function changeButton(action, ids, key) {
  const made = button(CHANGES[action][0], () => ask(action, ids), ["purge", "drop_run"].includes(action) ? "button danger" : "button");
  made.dataset.key = `${action} ${key}`;
  return made;
}
const queueButton = (action, queue) => {
  const made = changeButton(action, [queue.queue], queue.queue);
  made.setAttribute("aria-label", `${CHANGES[action][0]} queue ${queue.queue}`);
  return made;
};

function linkOf(item) {
  const target = { failure: () => go("failures"), queue: () => go("queues"), slow: () => showCall(item.id) }[item.what];
  return el("button", { type: "button", class: "link", "data-key": item.text, onclick: target }, item.text);
}

// -- the tree of live calls: only the rows that are in sight are in the page

let rows = [];
function flatten() {
  const children = new Map(), tops = [];
  for (const call of calls.values()) {
    const parent = call.parent && calls.has(call.parent) ? call.parent : null;
    if (parent === null) tops.push(call);
    else if (children.has(parent)) children.get(parent).push(call);
    else children.set(parent, [call]);
  }
  const wanted = filter.trim().toLowerCase();
  const hit = (call) => [call.task, call.id, call.worker, call.state, call.queue].some((text) => text && String(text).toLowerCase().includes(wanted));
  rows = [];
  const seen = new Set();
  const add = (call, depth) => {
    if (seen.has(call.id)) return false;
    seen.add(call.id);
    const at = rows.length, below = children.get(call.id) || [];
    rows.push({ call, depth, below: below.length });
    let kept = !wanted || hit(call);
    if (!folded.has(call.id) || wanted) for (const child of below) kept = add(child, depth + 1) || kept;
    if (!kept) rows.length = at;
    return kept;
  };
  for (const call of tops) add(call, 0);
}

function drawList() {
  const list = $("list");
  if (!list) return;
  flatten();
  $("shown").textContent = rows.length === calls.size ? counted(rows.length, "live call") : `${rows.length} of ${counted(calls.size, "live call")}`;
  let spacer = list.firstChild;
  if (!spacer) list.append(spacer = el("div"));
  spacer.style.height = `${rows.length * ROW}px`;
  if (wantReset && chosen) {
    wantReset = false;
    const at = rows.findIndex((row) => row.call.id === chosen);
    if (at >= 0) list.scrollTop = Math.max(0, at * ROW - list.clientHeight / 2);
  }
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(rows.length, first + Math.ceil(list.clientHeight / ROW) + 8);
  const drawn = [];
  for (let at = first; at < last; at++) drawn.push(callRow(rows[at], at));
  while (list.children.length > 1) list.lastChild.remove();
  list.append(...drawn);
  if (!rows.length) list.append(el("p", { class: "soft", style: { padding: "10px 14px" } }, filter ? "No live call fits the search." : "No call is live now."));
}

function callRow({ call, depth, below }, at) {
  const age = now() - (call.state === "waiting" ? call.since : call.started ?? call.since);
  const node = el("div", { class: `call${call.id === chosen ? " here" : ""}`, role: "treeitem", "aria-level": depth + 1, style: { top: `${at * ROW}px`, paddingLeft: `calc(10px + ${Math.min(depth, 12)} * var(--step))` },
    "aria-selected": String(call.id === chosen), "aria-expanded": below ? String(!folded.has(call.id)) : null,
    onclick: () => { chosen = call.id; drawList(); }, ondblclick: () => showCall(call.id) },
    below ? el("button", { type: "button", class: "fold", tabindex: "-1", "aria-label": folded.has(call.id) ? "Unfold" : "Fold", onclick: (event) => { event.stopPropagation(); fold(call.id); } }, folded.has(call.id) ? `▸` : "▾") : el("span", { class: "fold" }),
    el("span", { class: `state ${call.state}` }, call.state), el("span", { class: "name", title: call.task }, call.task), idLink(call.id),
    el("span", { class: "end" }, call.note ? el("span", { class: "more" }, call.note) : null, call.awaits ? el("span", { class: "more" }, `awaits ${call.awaits}`) : null,
      call.attempt > 1 ? el("span", { class: "more" }, `attempt ${call.attempt}`) : null, el("span", { class: "where mono more" }, call.worker || ""), el("span", {}, seconds(age))));
  return node;
}

function fold(id) { if (folded.has(id)) folded.delete(id); else folded.add(id); drawList(); }

function keys(event) {
  const at = rows.findIndex((row) => row.call.id === chosen);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key];
  if (step && rows.length) {
    const to = at < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, at + step));
    chosen = rows[to].call.id;
    const list = $("list");
    if (to * ROW < list.scrollTop) list.scrollTop = to * ROW;
    if ((to + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (to + 1) * ROW - list.clientHeight;
    drawList();
  } else if (event.key === "ArrowLeft" && at >= 0) { folded.add(chosen); drawList(); }
  else if (event.key === "ArrowRight" && at >= 0) { folded.delete(chosen); drawList(); }
  else if (event.key === "Enter" && at >= 0 && event.target === $("list")) showCall(chosen);
  else return;
  event.preventDefault();
}

// -- the timeline: a lane for each worker

const LINES = 12, BAR = 16;    // of a lane: calls at once that are drawn, and the height of one
const LEGEND = [["running", "running"], ["parked", "parked"], ["ended", "ended"], ["failed", "failed"]];
const WELL = ["running", "parked", "waiting", "value", "ended", "cancelled", "withdrawn", "given_back", "kept"];
let drawnSpans = [];
function drawTimeline() {
  if (!$("lanes")) {
    const canvas = el("canvas", { id: "lanes", role: "img", "aria-label": "Runs of the last minute, a lane for each worker" });
    canvas.addEventListener("click", (event) => {
      const hit = drawnSpans.find(([x, y, w, h]) => event.offsetX >= x && event.offsetX <= x + Math.max(w, 3) && event.offsetY >= y && event.offsetY <= y + h);
      if (hit) showSpan(hit[4]);
    });
    const legend = LEGEND.map(([name, text]) => el("span", { class: name }, el("i", {}, text)));
    $("view").replaceChildren(el("p", { class: "legend soft" }, "The last minute, a lane for each worker; a click on a bar shows its call.", legend), el("div", { class: "panel" }, canvas));
  }
  const canvas = $("lanes"), style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const end = now(), start = end - 60, spans = [];
  for (const span of state.spans) if (span.to > start) spans.push(span);
  for (const call of calls.values()) if (call.started && call.worker) spans.push({ ...call, from: call.started, to: end, status: call.state });
  const lanes = new Map();
  for (const span of spans) { if (!lanes.has(span.worker)) lanes.set(span.worker, []); lanes.get(span.worker).push(span); }
  let height = 30;
  const layout = [];
  for (const [worker, items] of [...lanes].sort(([a], [b]) => (a < b ? -1 : 1))) {
    items.sort((a, b) => a.from - b.from);
    const ends = [], drawn = [];
    for (const item of items) {
      let line = ends.findIndex((until) => until <= item.from);
      if (line < 0) line = ends.length;
      if (line === LINES) continue;
      ends[line] = item.to;
      drawn.push([item, line]);
    }
    layout.push([worker, height, drawn, items.length - drawn.length]);
    height += 22 + ends.length * (BAR + 2) + 10;
  }
  const width = canvas.parentElement.clientWidth, ratio = devicePixelRatio || 1;
  canvas.style.height = `${Math.max(height, 80)}px`;
  canvas.width = width * ratio; canvas.height = Math.max(height, 80) * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px ui-monospace, monospace";
  const x = (time) => ((Math.max(time, start) - start) / 60) * width;
  for (let second = 0; second <= 60; second += width < 600 ? 20 : 10) {
    const at = (second / 60) * width;
    pen.fillStyle = colour("--line");
    pen.fillRect(Math.min(at, width - 1), 20, 1, height - 20);
    pen.fillStyle = colour("--soft");
    pen.textAlign = second === 60 ? "right" : second ? "center" : "left";
    pen.fillText(second === 60 ? "now" : `${second - 60} s`, Math.min(at + (second ? 0 : 4), width - 4), 14);
  }
  pen.textAlign = "left";
  const letter = pen.measureText("m").width;
  drawnSpans = [];
  for (const [worker, top, drawn, hidden] of layout) {
    pen.fillStyle = colour("--text");
    pen.fillText(plain(worker) + (hidden ? `, and ${counted(hidden, "more run")} at the same time` : ""), 6, top + 13);
    for (const [span, line] of drawn) {
      pen.fillStyle = colour(!WELL.includes(span.status) ? "--bad" : span.status === "parked" ? "--park" : span.status === "running" ? "--good" : "--accent");
      const left = x(span.from), long = Math.max(2, x(span.to) - left), y = top + 20 + line * (BAR + 2);
      pen.fillRect(left, y, long, BAR);
      drawnSpans.push([left, y, long, BAR, span]);
      const room = Math.floor((long - 8) / letter), name = plain(span.task);
      if (room < 4) continue;
      pen.fillStyle = colour("--panel");
      pen.fillText(name.length > room ? `${name.slice(0, room - 1)}…` : name, left + 4, y + 12);
    }
  }
  if (!layout.length) { pen.fillStyle = colour("--soft"); pen.fillText("No run in the last minute.", 12, 50); }
  return null;
}

// -- dialogs

function dialog(title, body, buttons) {
  $("dialog-title").textContent = plain(title);
  $("dialog-body").replaceChildren(...body);
  $("dialog-buttons").replaceChildren(...buttons);
  if (!$("dialog").open) $("dialog").showModal();
}
const closing = (text = "Close") => button(text, () => $("dialog").close());
function pairs(entries) {
  return el("dl", {}, entries.filter(([, value]) => value !== undefined && value !== null && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function showSpan(span) {
  dialog(span.task, [pairs([["Call", span.id], ["Worker", span.worker], ["State", span.status], ["Ran for", seconds(span.to - span.from)]])], [closing()]);
}

function showCall(id) {
  chosen = id;
  const call = calls.get(id), failure = state.failures.find((one) => one.id === id), span = state.spans.find((one) => one.id === id);
  if (!call && !failure && span) { showSpan(span); return; }
  if (!call && !failure) { dialog("This call has ended", [el("p", {}, `Call ${id} is not live, and ended without a failure, or before this page watched.`)], [closing()]); return; }
  const from = call || failure;
  const body = [pairs([["Call", from.id], ["State", call ? call.state : failure.status], ["Worker", from.worker], ["Queue", from.queue], ["Age", call && seconds(now() - call.since)],
    ["Ran for", call?.started && seconds(now() - call.started)], ["Attempt", from.attempt], ["Awaits", from.awaits],
    ["Awaited by", call?.parent && idLink(call.parent)], ["Progress", call?.note]])];
  if (failure) body.push(el("pre", { tabindex: "0" }, failure.traceback));
  const frames = el("pre", { tabindex: "0", hidden: "" });
  body.push(frames);
  const buttons = [];
  if (call) {
    buttons.push(button("Show in tree", () => { $("dialog").close(); filter = ""; go("calls", id); }));
    buttons.push(button("Stack", async ({ currentTarget: asking }) => {
      asking.disabled = true; // one question at a time: a second click would hide the answer to the first
      frames.hidden = false;
      frames.textContent = "asking its worker";
      const answer = await fetch(`api/stack/${encodeURIComponent(id)}`).then((response) => response.json()).catch(() => ({ error: "the server gave no answer" }));
      asking.disabled = false;
      frames.textContent = plain(answer.error || answer.stack || "No worker that has answered runs it: it has ended, or its worker is busy. Ask again.");
    }));
    if (MAY_CHANGE) buttons.push(button("Cancel call", () => ask("cancel", [id]), "button danger"));
  }
  dialog(from.task, body, [...buttons, closing()]);
}

async function showRun(id) {
  dialog("Submitted", [el("p", {}, "reading its record")], [closing()]);
  const answer = await fetch(`api/run/${encodeURIComponent(id)}`).then((response) => response.json()).catch(() => ({ error: "the server gave no answer" }));
  if (!$("dialog").open) return;
  if (answer.error) { dialog("There is no such record", [el("p", { class: "bad" }, answer.error)], [closing()]); return; }
  const { failure, ...rest } = answer, body = [pairs(Object.entries(rest))], buttons = [];
  if (failure) body.push(el("pre", { tabindex: "0" }, failure));
  if (calls.has(id)) buttons.push(button("Show call", () => showCall(id)));
  if (MAY_CHANGE) {
    if (failure && answer.state !== "cancelled") buttons.push(changeButton("retry_run", [id], id));
    buttons.push(changeButton("drop_run", [id], id));
  }
  dialog(answer.task, body, [...buttons, closing()]);
}

function ask(action, ids) {
  const [name, words, text] = CHANGES[action];
  const act = async () => {
    dialog(words, [el("p", {}, "asking the workers")], []);
    let answer;
    try {
      const response = await fetch("api/act", { method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": CSRF }, body: JSON.stringify({ action, ids }) });
      const said = await response.text();
      try { answer = JSON.parse(said); } catch { answer = { error: said }; }
    } catch { answer = { error: "the page's server gave no answer; nothing may have been done" }; }
    dialog(answer.error ? "That could not be done" : "Done", [el("p", { class: answer.error ? "bad" : null }, answer.error || answer.done)], [closing()]);
  };
  const yes = button(name, act, "button danger");
  yes.id = "confirm";
  dialog(words, [el("p", { class: "mono" }, ids.join(", ")), el("p", {}, text)], [closing("Keep"), yes]);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(event.target.tagName) && !$("dialog").open) {
    event.preventDefault();
    if (view !== "calls") go("calls");
    setTimeout(() => $("search")?.focus(), 60);
  }
});
addEventListener("pointerdown", () => { pressed = performance.now(); }, true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { pressed = -PRESS_MS; schedule(); }), true);
addEventListener("hashchange", follow);
addEventListener("resize", schedule);
setInterval(schedule, 1000);
follow();
listen();
