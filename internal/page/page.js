"use strict";

// What the process sends, section by section: see Snapshot in page.go.
const now = { process: null, calls: null, live: [], over: [], codes: {} };
const get = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en").format;
const tokenKey = "groupferry-token";

let offset = 0; // from this clock to that of the process, in ms
let seen = Date.now(); // when it last sent something
let ended = false; // it said that it ends
let chosen = ""; // import whose failures a person asked for

// make makes an element; texts are never taken for HTML.
function make(tag, props, ...children) {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...children);
  return e;
}

function set(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// things says how many there are: 1 job, 2 jobs.
const things = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;

// span writes a time as people say it.
function span(seconds) {
  const s = Math.max(1, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s < 600 && s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return things(Math.floor(s / 86400), "day");
}

const clock = () => Date.now() + offset;

function ago(at) {
  const s = (clock() - at) / 1000;
  if (s < 5) return "just now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${things(Math.floor(s / 86400), "day")} ago`;
}

// dated is an element with an age, which tick keeps true.
function dated(e, at, before = "") {
  e.dataset.at = at;
  e.dataset.before = before;
  e.title = new Date(at - offset).toLocaleString();
  set(e, before + ago(at));
}

// keyed makes the children of an element those of the items, and keeps elements that are there: so does the focus.
function keyed(parent, items, create, update) {
  const have = new Map([...parent.children].map((e) => [e.dataset.key, e]));
  let place = parent.firstElementChild;
  for (const item of items) {
    let e = have.get(item.id);
    if (e) have.delete(item.id);
    else {
      e = create(item);
      e.dataset.key = item.id;
    }
    update(e, item);
    if (e === place) place = place.nextElementSibling;
    else parent.insertBefore(e, place);
  }
  for (const e of have.values()) e.remove();
}

const token = () => sessionStorage.getItem(tokenKey) || "";

// --- what is shown

function showProcess() {
  const p = now.process;
  document.body.dataset.state = p.state;
  set(get("headline"), p.headline);
  set(get("where"), p.host);
  set(get("version"), p.version ? `groupferry ${p.version}` : "");
  let detail = p.detail;
  if (p.since) detail = `Since ${new Date(p.since - offset).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}. ${detail}`;
  const last = now.over[0];
  if (p.state === "idle" && last && last.ended) detail += ` ${title(last)} was ${last.state} ${ago(last.ended)}.`;
  set(get("detail"), detail);
  set(get("remedy"), p.remedy || "");
  set(get("command"), p.command || "");
  get("remedy-line").hidden = !p.remedy;
  get("command-line").hidden = !p.command;
  get("why").hidden = !p.remedy && !p.command;

  const processes = [];
  if (p.leader) processes.push({ id: `1${p.leader}`, host: p.leader, leads: true });
  for (const host of p.standbys) if (host) processes.push({ id: `2${host}`, host });
  if (!processes.length) processes.push({ id: "0", host: "none yet" });
  keyed(get("processes"), processes, () => make("li", {}, make("b"), make("span")), (e, i) => {
    e.className = i.leads ? "leads" : "";
    set(e.firstChild, i.host);
    const what = i.id === "0" ? "" : ended && i.host === p.host ? "has ended" : i.leads ? "leads" : p.leader ? "stands by" : "waits";
    set(e.lastChild, what + (i.host === p.host ? ", this one" : ""));
  });
  set(get("rate"), p.rate ? count(p.rate) : "–");
  set(get("rate-note"), p.rate_note ? `It is ${p.rate_note}.` : "");
  showControls();
  showTitle();
}

function showControls() {
  const p = now.process;
  const can = p && p.controls && !ended;
  const may = can && token() !== "";
  get("token-form").hidden = !can || may;
  get("token-known").hidden = !may;
  get("rate-form").hidden = !may;
  get("buttons").hidden = !may;
  if (may) {
    get("pause").hidden = !p.can_pause;
    get("resume").hidden = !p.can_resume;
  }
  for (const b of document.querySelectorAll(".retry")) b.hidden = !may;
}

function showTitle() {
  const p = now.process;
  const run = now.live.find((i) => i.jobs);
  const share = p.state === "running" && run ? `${Math.floor((100 * run.finished) / run.jobs)} % · ` : `${p.headline} · `;
  document.title = `${share}groupferry`;
}

const sums = [["Conversations done", "done"], ["Removed", "removed"], ["Failed", "failed"], ["Rejected rows", "rejected"], ["Jobs left", "todo"]];

function showLive() {
  keyed(get("live"), now.live.slice(0, 5), () => {
    const e = make("article", { className: "run" });
    e.append(make("div", { className: "line" }, make("h2"), make("span", { className: "left" })));
    const bar = make("div", { className: "bar" }, make("span"), make("span", { className: "lost" }));
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-valuemin", "0");
    bar.setAttribute("aria-valuemax", "100");
    e.append(bar);
    const list = make("dl", { className: "sums" });
    for (const [name, key] of sums) list.append(make("div", {}, make("dt", { textContent: name }), make("dd", { className: key })));
    e.append(list);
    return e;
  }, (e, i) => {
    set(e.querySelector("h2"), title(i));
    const share = i.jobs ? i.finished / i.jobs : 0;
    const bar = e.querySelector(".bar");
    const lost = i.finished ? (share * i.failed_jobs) / i.finished : 0;
    const percent = Math.floor(share * 100);
    bar.setAttribute("aria-valuenow", String(percent));
    bar.setAttribute("aria-label", title(i));
    bar.firstChild.style.width = `${(share - lost) * 100}%`;
    bar.lastChild.style.width = `${lost * 100}%`;
    let left = i.note || i.state;
    if (i.unknown) left = "how far it is will be known in a moment";
    else if (i.jobs) left = `${percent} % · ${count(i.finished)} of ${things(i.jobs, "job")}`;
    if (i.note) left += ` · ${i.note}`;
    else if (i.state !== "running") left += ` · ${i.state}`;
    if (i.left) {
      left += ` · ${span(i.left)} left, until ${new Date(Date.now() + i.left * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}`;
    }
    set(e.querySelector(".left"), left);
    const known = (n) => (i.unknown ? "–" : count(n));
    set(e.querySelector("dd.done"), known(i.done));
    set(e.querySelector("dd.removed"), known(i.removed || 0));
    e.querySelector("dd.removed").parentElement.hidden = !i.removals && !i.removed;
    set(e.querySelector("dd.failed"), known(i.failed));
    e.querySelector("dd.failed").classList.toggle("bad-text", i.failed > 0);
    set(e.querySelector("dd.rejected"), count(i.rejected));
    set(e.querySelector("dd.todo"), known(Math.max(0, i.jobs - i.finished)));
  });
}

function fileText(i) {
  const n = i.file_count;
  if (!n) return "";
  return n === i.files.length ? i.files.join(", ") : `${i.files[0]} and ${count(n - 1)} more`;
}

// title is what people call an import: its files, or which night of a sync it is.
const title = (i) => (i.name === i.id && fileText(i)) || i.name;

function showImports() {
  const all = [...now.live, ...now.over];
  get("table").hidden = !all.length;
  get("none").hidden = all.length > 0;
  keyed(get("rows"), all, () => {
    const cell = (label, className = "") => {
      const td = make("td", { className });
      td.dataset.label = label;
      return td;
    };
    const failed = make("button", { type: "button", className: "number" });
    const retry = make("button", { type: "button", className: "small retry", textContent: "Retry" });
    const e = make("tr", {}, cell("Import"), cell("Begun", "age"), cell("State"), cell("Done", "n"), cell("Failed", "n"), cell("Rejected", "n"), cell("", "n act"));
    e.children[0].append(make("b"), make("span", { className: "file" }));
    e.children[1].append(make("span"));
    e.children[2].append(make("span"));
    e.children[3].append(make("span"), make("span", { className: "note" }));
    e.children[4].append(make("span"), failed);
    e.children[6].append(retry);
    failed.addEventListener("click", () => {
      chosen = e.dataset.key;
      showFailures();
      get("failures").scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
    retry.addEventListener("click", () => act("retry", { import: e.dataset.key }, retry));
    return e;
  }, (e, i) => {
    const [name, begun, state, done, failed, rejected, actions] = e.children;
    set(name.firstChild, title(i));
    set(name.lastChild, i.name === i.id ? i.id : `${fileText(i)} · ${i.id}`);
    dated(begun.firstChild, i.begun);
    state.firstChild.className = `chip ${i.state}`;
    state.firstChild.title = i.note || "";
    set(state.firstChild, i.state);
    set(done.firstChild, i.unknown ? "–" : count(i.done));
    set(done.lastChild, i.removed ? `${count(i.removed)} removed` : "");
    const [none, some] = failed.children;
    none.hidden = i.failed > 0;
    some.hidden = i.failed === 0;
    set(none, i.unknown ? "–" : "0");
    set(some, count(i.failed));
    some.setAttribute("aria-label", `${count(i.failed)} failed in ${title(i)}: show why`);
    set(rejected, count(i.rejected));
    rejected.title = i.rejects || "";
    const retry = actions.firstChild;
    retry.setAttribute("aria-label", `Retry ${title(i)}`);
    retry.style.display = i.retry ? "" : "none";
    retry.hidden = !now.process || !now.process.controls || token() === "";
  });
  showFailures();
}

function showFailures() {
  const all = [...now.live, ...now.over];
  const i = all.find((i) => i.id === chosen && i.failed) || now.live.find((i) => i.failed) || (now.over[0] && now.over[0].failed ? now.over[0] : null);
  get("failures").hidden = !i;
  if (!i) return;
  set(get("failures-title"), `What failed in ${title(i)}`);
  const codes = Object.entries(i.codes || {}).sort((a, b) => b[1] - a[1]).map(([id, n]) => ({ id, n, ...(now.codes[id] || {}) }));
  const known = codes.reduce((sum, c) => sum + c.n, 0);
  if (known < i.failed) {
    codes.push({ id: "–", n: i.failed - known, meaning: "written by an earlier version", remedy: `groupferry results ${i.id} --summary says why` });
  }
  keyed(get("codes"), codes, () => {
    const e = make("tr");
    for (const label of ["Code", "Meaning", "What to do", "Failed"]) {
      const td = make("td", { className: label === "Failed" ? "n" : "" });
      td.dataset.label = label;
      e.append(td);
    }
    e.firstChild.append(make("b"));
    return e;
  }, (e, c) => {
    set(e.children[0].firstChild, c.id);
    set(e.children[1], c.meaning || "");
    set(e.children[2], c.remedy || "");
    set(e.children[3], count(c.n));
  });
}

// --- the chart

const commands = ["create_contact_group", "update_contact_group", "get_contact_group", "del_contact_group"];
const svg = "http://www.w3.org/2000/svg";

function draw(parent, tag, attributes, text) {
  const e = document.createElementNS(svg, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  if (text) e.textContent = text;
  parent.append(e);
}

function showCalls() {
  const c = now.calls;
  const p = now.process;
  if (!c) return;
  const lines = c.commands.filter((s) => commands.includes(s.command)).sort((a, b) => commands.indexOf(a.command) - commands.indexOf(b.command));
  const legend = lines.map((s, i) => ({ id: s.command, i, text: `${s.command} ${count(Math.round(s.now))}` }));
  const away = p && p.leader && !p.leads;
  if (away || !lines.length) {
    let text = "No calls in the last ten minutes.";
    if (away) text = `${p.leader} makes the calls; its page shows them.${c.jobs ? ` It finishes ${c.jobs.toFixed(1)} jobs a second.` : ""}`;
    legend.push({ id: " ", i: 9, text });
  }
  keyed(get("legend"), legend, () => make("span", {}, make("i"), make("span")), (e, l) => {
    e.className = `s${l.i}`;
    e.firstChild.hidden = l.i === 9;
    set(e.lastChild, l.text);
  });

  const box = get("chart");
  box.hidden = away && !lines.length;
  if (box.hidden) return;
  const width = box.clientWidth;
  const height = box.clientHeight;
  const [left, right, top, bottom] = [36, 4, 10, 22];
  const most = Math.max(c.limit, 1, ...lines.flatMap((s) => s.per_second)) * 1.12;
  // The time shown is that with calls, up to all of it.
  const all = lines.length ? lines[0].per_second.length : 600 / c.bucket;
  const first = Math.min(all, ...lines.map((s) => s.per_second.findIndex((v) => v > 0)).filter((j) => j >= 0));
  const n = [60, 120, 300].map((s) => s / c.bucket).find((m) => m >= all - first + 1 && first < all) || all;
  const x = (i) => left + ((width - left - right) * i) / (n - 1);
  const y = (v) => top + (height - top - bottom) * (1 - v / most);
  const root = document.createElementNS(svg, "svg");
  for (const v of [0, c.limit / 2]) {
    draw(root, "line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) });
    draw(root, "text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, count(v));
  }
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const s = (1 - share) * n * c.bucket;
    draw(root, "text", { x: x(share * (n - 1)), y: height - 4, "text-anchor": anchor }, s ? `${span(s)} ago` : "now");
  }
  lines.map((s, i) => [s, i]).reverse().forEach(([s, i]) => { // the first one on top
    const points = s.per_second.slice(all - n).map((v, j) => `${x(j).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    if (!i) draw(root, "polygon", { class: "area", points: `${x(0)},${y(0)} ${points} ${x(n - 1)},${y(0)}` });
    draw(root, "polyline", { class: `s${i}`, points });
  });
  if (c.limit) {
    draw(root, "line", { class: "limit", x1: left, x2: width - right, y1: y(c.limit), y2: y(c.limit) });
    draw(root, "text", { x: left - 8, y: y(c.limit) + 4, "text-anchor": "end" }, count(c.limit));
    draw(root, "text", { x: width - right, y: y(c.limit) - 5, "text-anchor": "end" }, "limit");
  }
  box.replaceChildren(root);
  box.setAttribute("aria-label", legend.map((l) => l.text).join("; "));
}

// --- actions

let answered; // when the answer goes

function answer(a, bad) {
  const e = get("answer");
  e.hidden = false;
  e.className = bad ? "bad" : "";
  set(e, a.hint ? `${a.text}; ${a.hint}` : a.text);
  clearTimeout(answered);
  answered = setTimeout(() => { e.hidden = true; }, 30000);
}

async function act(name, body, button) {
  if (button) button.disabled = true;
  try {
    const response = await fetch(`actions/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Page-Token": token() },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(15000), // a browser has six connections, and as many open pages take them all
    });
    const a = await response.json();
    if (response.status === 401 || (name === "check" && !response.ok)) sessionStorage.removeItem(tokenKey);
    answer(a, !response.ok);
    return response.ok;
  } catch {
    answer({ text: "The process cannot be reached", hint: "whether it was done shows here once it can" }, true);
    return false;
  } finally {
    if (button) button.disabled = false;
    showControls();
  }
}

get("pause").addEventListener("click", () => act("pause", {}, get("pause")));
get("resume").addEventListener("click", () => act("resume", {}, get("resume")));
get("rate-form").addEventListener("submit", async (e) => {
  e.preventDefault();
  if (await act("rate", { calls: Number(get("calls").value) })) get("calls").value = "";
});
get("token-form").addEventListener("submit", (e) => {
  e.preventDefault();
  const given = get("token").value.trim();
  get("token").value = "";
  if (!/^[ -~]+$/.test(given)) { // no header can have it
    answer({ text: "the token is wrong", hint: "it has no characters beyond ASCII" }, true);
    return;
  }
  sessionStorage.setItem(tokenKey, given);
  act("check", {});
});
get("forget").addEventListener("click", () => {
  sessionStorage.removeItem(tokenKey);
  get("answer").hidden = true;
  showControls();
});
get("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(get("command").textContent);
    set(get("copy"), "Copied");
  } catch { // not over plain HTTP
    getSelection().selectAllChildren(get("command"));
    set(get("copy"), "Selected");
  }
  setTimeout(() => set(get("copy"), "Copy"), 2000);
});

// --- the connection

const silence = 40000; // ms; the process sends something every 15 s

function linked(state) {
  if (document.body.dataset.link === state) return;
  document.body.dataset.link = state;
  tick();
}

function connect(pause = 1000) {
  const source = new EventSource("events");
  const shows = { process: [showProcess, showCalls, showLive, showImports], calls: [showCalls], live: [showLive, showImports], over: [showImports], codes: [showFailures] };
  const again = () => {
    source.close();
    clearInterval(watch);
    linked(ended ? "ended" : "lost");
    setTimeout(connect, pause, Math.min(pause * 2, 10000));
  };
  const watch = setInterval(() => { if (Date.now() - seen > silence) again(); }, 5000);
  const heard = (e) => {
    seen = Date.now();
    if (e.lastEventId) offset = Number(e.lastEventId) - seen;
    pause = 1000;
    linked("live");
  };
  for (const [name, draws] of Object.entries(shows)) {
    source.addEventListener(name, (e) => {
      heard(e);
      ended = false;
      now[name] = JSON.parse(e.data);
      for (const show of draws) if (now.process || name === "process") show();
    });
  }
  source.addEventListener("beat", heard);
  source.addEventListener("full", (e) => {
    again();
    set(get("headline"), "Too many pages are open");
    set(get("detail"), `This process has ${e.data} of them already. Close one; this page is then tried again.`);
  });
  source.addEventListener("end", () => {
    ended = true;
    showProcess();
    again();
  });
  source.onerror = again;
}

function tick() {
  for (const e of document.querySelectorAll("[data-at]")) set(e, e.dataset.before + ago(Number(e.dataset.at)));
  const link = document.body.dataset.link;
  set(get("link-text"), link === "live" ? "live" : link === "waiting" ? "connecting" : `${link === "ended" ? "ended" : "no connection"}, last seen ${ago(seen + offset)}`);
  if (link === "lost" && now.process) {
    set(get("headline"), "No connection");
    set(get("detail"), "The process has ended, or cannot be reached. What is shown is old; it is tried again and again.");
    get("why").hidden = true;
    document.title = "No connection · groupferry";
  } else if (link === "live" && now.process) showProcess();
}

new ResizeObserver(showCalls).observe(get("chart"));
setInterval(tick, 5000);
connect();
