// The status page: follows the server by its events, and shows what it says.

import * as admin from "./admin.js";
import { Chart } from "./charts.js";
import { $, copyable, el, prose, rebuild, say, svg } from "./dom.js";
import * as tryIt from "./try.js";
import { age, bytes, clock, judge, lagOf, milliseconds, plural, rate, said, seconds, span, subject, valueOf, version, whose } from "./words.js";

const KEPT = 600000;
const HISTORY = 60;
const FIRST = 8;
const VALUES = 8;

const world = {
  server: null,
  // The last ten minutes, a sample a second.
  seconds: [],
  pulse: null,
  catalog: null,
  // Newest first.
  history: [],
  // The states' values, by key: { etag, text }.
  values: new Map(),
  // When something was heard last, by the server's clock.
  link: { state: "connecting", heard: null },
};
// How far the server's clock is ahead of the browser's. All ages are by the server's.
let offset = 0;
const now = () => Date.now() + offset;
let kind = "all";
let rows = FIRST;

// --- what the server says

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

let asking = false;
let due = false;

// What is served is asked for when something happened: at once, then once a second at the most.
async function refresh() {
  due = true;
  if (asking) return;
  asking = true;
  while (due) {
    due = false;
    try {
      world.catalog = await (await ask("models")).json();
      await values();
    } catch {
      // The link says so, and the next pulse or event asks again.
    }
    show();
    await new Promise((done) => setTimeout(done, 1000));
  }
  asking = false;
}

async function values() {
  const wanted = world.catalog.states.slice(0, VALUES).filter(({ key, etag }) => world.values.get(key)?.etag !== etag);
  await Promise.all(wanted.map(async ({ key, etag }) => {
    const text = await (await ask(`state/${encodeURIComponent(key)}`)).text();
    world.values.set(key, { etag, text });
  }));
}

// What comes while the past is asked for, for each who asks: the answer may be older.
const meanwhile = new Set();

async function past() {
  const come = [];
  meanwhile.add(come);
  try {
    const { entries } = await (await ask(`history?limit=${HISTORY}`)).json();
    world.history = [...come.filter(({ id }) => id > (entries[0]?.id ?? 0)).reverse(), ...entries];
  } catch {
    // As above.
  }
  meanwhile.delete(come);
}

function heard(event) {
  const data = JSON.parse(event.data);
  if (event.type === "pulse") offset = Date.parse(data.at) - Date.now();
  world.link.heard = now();
  return data;
}

function lost() {
  world.link.state = "lost";
  show();
}

// Where the server answers, it has no place for one more who listens: what it serves can be asked for all the same.
async function refused() {
  try {
    await ask("livez");
  } catch {
    lost();
    return;
  }
  Object.assign(world.link, { state: "refused", heard: now() });
  await past();
  refresh();
}

let events = null;
// When it was made, by the browser's clock.
let begun = 0;

function listen() {
  if (events && events.readyState !== EventSource.CLOSED) return;
  begun = Date.now();
  events = new EventSource("events?pulse");
  events.onopen = async () => {
    Object.assign(world.link, { state: "live", heard: now() });
    // What happened before it was open is not told.
    await past();
    refresh();
  };
  events.onerror = () => {
    const closed = events.readyState === EventSource.CLOSED;
    // Who is refused once more has lost nothing.
    if (!closed || world.link.state === "live") lost();
    if (closed) refused();
  };
  events.addEventListener("server", (event) => {
    world.server = heard(event);
    admin.setAdmin(world.server.admin);
  });
  events.addEventListener("pulses", (event) => {
    const { columns, rows } = heard(event);
    const paths = columns.map((column) => column.split("."));
    world.seconds = rows.map((row) => {
      const second = { all: {}, predictions: {}, states: {} };
      row.forEach((value, i) => {
        const [of, field] = paths[i];
        if (field) second[of][field] = value;
        else second[of] = value;
      });
      return { ...second, at: second.at_ms };
    });
  });
  events.addEventListener("pulse", (event) => {
    const pulse = heard(event);
    const at = Date.parse(pulse.at);
    const behind = world.pulse && pulse.generation !== world.catalog?.generation;
    world.pulse = pulse;
    if (at - (world.seconds.at(-1)?.at ?? 0) > 500) world.seconds.push({ at, in_flight: pulse.in_flight, ...pulse.requests });
    while (world.seconds.length && world.seconds[0].at < at - KEPT) world.seconds.shift();
    if (behind) refresh();
    show();
  });
  const happened = (event) => {
    const entry = heard(event);
    meanwhile.forEach((come) => come.push(entry));
    if (entry.id > (world.history[0]?.id ?? 0)) world.history.unshift(entry);
    world.history.length = Math.min(world.history.length, 500);
    show();
    refresh();
  };
  Object.keys(said).forEach((outcome) => events.addEventListener(outcome, happened));
  events.addEventListener("gap", async (event) => {
    heard(event);
    await past();
    refresh();
  });
}

// --- what is shown

const since = (at, words = age) => {
  const made = el("time", { datetime: new Date(at).toISOString(), title: new Date(at).toLocaleString() });
  made.words = () => words(now() - at);
  made.textContent = made.words();
  return made;
};

// Ages go on by themselves, whatever else changes.
function ages() {
  for (const made of document.querySelectorAll("time")) if (made.words) say(made, made.words());
}

const ICONS = { good: "#2f9e62", info: "#2f9e62", warn: "#d08700", bad: "#d33a2c", wait: "#8a8580" };

function icon(level) {
  const ring = `<circle cx="24" cy="24" r="7" fill="${ICONS[level]}" stroke="#fff" stroke-width="2"/>`;
  const flame = '<path fill="#e2621b" d="M15 1c1 6 9 9 9 18a9 9 0 0 1-18 0c0-4 2-6 3-9 1 2 2 3 3 4 1-4 1-8 3-13z"/>';
  const text = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">${flame}${level === "good" || level === "info" ? "" : ring}</svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(text)}`;
  if ($("icon").getAttribute("href") !== href) $("icon").setAttribute("href", href);
}

function verdict() {
  const { pulse, link, catalog } = world;
  const found = judge(world, now());
  const troubles = found.filter(({ level }) => level !== "info");
  const first = troubles[0];
  const waits = !pulse && !first;
  const level = first?.level ?? (waits ? "wait" : "good");
  $("verdict").dataset.level = level;
  const bare = catalog && !catalog.models.length && !catalog.states.length;
  const headline = first?.title ?? (waits ? "Asking the server…" : bare ? "Ready, and nothing to serve yet" : "All is well");
  // Said once, not each second: an age in it goes on without being spoken.
  const still = headline.replace(/\d+(\.\d+)?/g, "#");
  if ($("headline").dataset.still !== still) $("headline").setAttribute("aria-live", "polite");
  else $("headline").setAttribute("aria-live", "off");
  $("headline").dataset.still = still;
  say($("headline"), headline);
  const cure = first?.cure ?? (waits ? "" : summary(catalog));
  rebuild($("cure"), cure, () => prose(cure));
  rebuild($("evidence"), [first ? first.evidence : evidence(pulse)], () => (first ? first.evidence : evidence(pulse)).map((text) => el("span", text)));
  const rest = found.filter((finding) => finding !== first);
  rebuild($("findings"), rest, () => rest.map(({ level, title, cure, evidence }) =>
    el(`li.${level}`, el("h3", title), el("p", prose(cure)), evidence.length > 0 && el("p.evidence", evidence.map((text) => el("span", text))))));
  $("findings").hidden = rest.length === 0;
  const mark = { bad: "✕ ", warn: "! ", wait: "… " }[level] ?? "";
  const title = first ? `${mark}${headline.replace(/ for \d.*$/, "")} – hotserve` : "hotserve";
  if (document.title !== title) document.title = title;
  icon(level);
  say($("link-text"), { live: "live", lost: "no connection", connecting: "connecting…", refused: "asking now and then" }[link.state]);
  $("link").dataset.state = link.state;
  document.body.classList.toggle("stale", link.state === "lost");
}

function summary(catalog) {
  if (!catalog) return "";
  const { models, states } = catalog;
  if (!models.length && !states.length) return "It follows the stream. The commands below publish a model or a state.";
  return `It serves ${plural(models.length, "model")} and ${plural(states.length, "state")}, follows the stream, and answers.`;
}

function evidence(pulse) {
  if (!pulse) return [];
  const from = { manifest: "from the manifest", lookback: "from the stream", journal: "from the last known good on its disk", none: "from nothing" }[pulse.bootstrapped];
  const shards = Object.values(pulse.stream.shards);
  const lag = Math.max(0, ...shards.map((shard) => lagOf(shard, now())));
  return [from && `Started ${from}`, shards.length > 0 && `${plural(shards.length, "shard")} read ${lag < 2000 ? "to the tip" : `${span(lag)} late`}`].filter(Boolean);
}

function about() {
  if (!world.server) return;
  const at = Date.parse(world.server.started_at);
  rebuild($("about"), world.server, () => [`${world.server.version} · up `, since(at, span)]);
}

function tiles() {
  const { pulse, seconds: all } = world;
  if (!pulse) return;
  const last = all.slice(-10);
  const mean = (field) => last.reduce((sum, second) => sum + second[kind][field], 0) / Math.max(last.length, 1);
  const minute = pulse.minute[kind];
  const failed = mean("failed_per_second");
  const refused = mean("refused_per_second");
  const fresh = world.history.find((entry) => entry.publish_to_serving_seconds !== undefined);
  const lags = Object.values(pulse.stream.shards).map((shard) => lagOf(shard, now()));
  const lag = lags.length ? Math.max(...lags) : null;
  const { models, budget, resident } = pulse.memory;
  const shown = [
    ["Requests", rate(mean("per_second")), "a second"],
    ["Median", milliseconds(minute.p50_ms), "last minute"],
    ["p99", milliseconds(minute.p99_ms), "last minute"],
    ["Errors", rate(failed + refused), failed + refused > 0 ? `${rate(failed)} failed, ${rate(refused)} refused` : "a second", failed > 0 ? "bad" : ""],
    ["In flight", rate(pulse.in_flight), "requests"],
    ["Publish to serving", fresh ? seconds(fresh.publish_to_serving_seconds) : "–", fresh ? `${fresh.slots[0] ?? ""}` : "none yet"],
    ["Stream lag", lag === null ? "–" : lag < 1000 ? "< 1 s" : span(lag), "worst shard", lag > 60000 ? "bad" : lag > 10000 ? "warn" : ""],
    ["Memory", bytes(resident), budget ? `models ${bytes(models)} of ${bytes(budget)}` : `models ${bytes(models)}`],
  ];
  rebuild($("tiles"), shown, () => shown.map(([name, value, note, level]) => el(`div.tile${level ? `.${level}` : ""}`, el("dt", name), el("dd", el("b", value), el("span", note)))));
}

let charts = null;

function traffic() {
  if (!charts) {
    const of = (field) => (second) => second[kind][field] ?? null;
    charts = [
      new Chart($("chart-rate"), {
        series: [
          { name: "answered", className: "first", of: of("per_second"), area: true },
          { name: "failed", className: "wrong", of: (second) => second[kind].failed_per_second || null },
        ],
        format: rate, least: 3,
      }),
      new Chart($("chart-time"), {
        series: [
          { name: "median", className: "first", of: of("p50_ms") },
          { name: "p99", className: "second", of: of("p99_ms") },
        ],
        format: milliseconds, logarithmic: true, least: 1,
      }),
    ];
  }
  const kindOf = ({ outcome }) => ({ applied: "swap", rejected: "bad", quarantined: "bad", fell_back: "bad", reload_failed: "bad" })[outcome] ?? "told";
  const marks = world.history.map((entry) => ({ at: Date.parse(entry.at), kind: kindOf(entry), text: `${what(entry)} ${done(entry)}` }));
  // With the server lost, the lines stop and time goes on.
  charts.forEach((chart) => chart.draw(world.seconds, marks, now()));
}

// Of these the version is where the slot goes.
const TO = { rolled_back: true, pinned: true };
const what = (entry) => entry.slots.map((slot, i) => `${slot} ${TO[entry.outcome] ? "" : version(entry.versions[i])}`.trim()).join(", ") || subject(entry);
const done = (entry) => `${said[entry.outcome] ?? entry.outcome}${TO[entry.outcome] && entry.versions[0] ? ` to ${version(entry.versions[0])}` : ""}`;

function held(slot) {
  if (!slot.held) return null;
  const there = String(slot.held.version) === String(slot.version);
  return el("span.badge.warn", { title: `by ${whose[slot.held.by]}` }, there ? "pinned" : `pinned to ${version(slot.held.version)}`);
}

function named(name, slot, kind) {
  return el("div.name", el("span.kind", kind), el("b", name), held(slot));
}

const fact = (name, ...value) => el("div", el("dt", name), el("dd", ...value));

function buttons(slot, ...more) {
  const told = admin.unlocked() && el("button.quiet", "Change…", { type: "button", "data-key": `change ${slot.name}`, "aria-label": `Change ${slot.name}`, onclick: () => admin.open(slot) });
  return el("div.row-actions", more, told);
}

function versionOf({ version: served, label }) {
  const text = String(served);
  const shown = text.length > 16 ? copyable(text, version(text), "version") : text;
  return el("span.version", shown, label && el("span.soft", ` ${label}`));
}

function modelRow(model) {
  const ask = el("button.quiet", "Try", { type: "button", "data-key": `try ${model.name}`, "aria-label": `Try model ${model.name}`, onclick: () => tryIt.choose(model.name) });
  return el("li", named(model.name, model, "model"),
    el("dl.facts",
      fact("version", versionOf(model)),
      fact("format", model.engine === model.format ? model.format : `${model.format} · ${model.engine}`),
      fact("digest", copyable(model.digest, model.digest.slice(0, 10), "digest")),
      fact("memory", bytes(model.memory_bytes)),
      fact("a row", milliseconds(model.row_cost_us / 1000)),
      fact("for", since(Date.parse(model.applied_at), span))),
    buttons(admin.slotOf(model, "model"), ask));
}

function stateRow(state) {
  const value = world.values.get(state.key);
  const text = value && valueOf(value.text);
  return el("li", named(state.key, state, "state"),
    el("dl.facts.of-state",
      fact("version", versionOf(state)),
      fact("tag", state.etag ? copyable(state.etag.replaceAll('"', ""), state.etag.slice(1, 11), "tag") : "–"),
      fact("for", since(Date.parse(state.applied_at), span))),
    buttons(admin.slotOf(state, "state")),
    text && el("pre.value", text, { tabindex: "0", "aria-label": `The value of ${state.key}` }));
}

function aside(slot, words, action) {
  const [kind, ...rest] = slot.split(" ");
  return el("li.aside", el("div.name", el("span.kind", kind), el("b", rest.join(" ")), el("span.badge", words)), action);
}

function served() {
  const { catalog, pulse } = world;
  if (!catalog) return;
  const { models, states } = catalog;
  const present = new Set([...models.map(({ name }) => `model ${name}`), ...states.map(({ key }) => `state ${key}`)]);
  const unloaded = (pulse?.unloaded ?? []).filter((slot) => !present.has(slot));
  const loading = (pulse?.loading ?? []).filter((slot) => !present.has(slot));
  const key = [models, states, [...world.values].map(([key, { etag }]) => [key, etag]), unloaded, loading, admin.unlocked()];
  rebuild($("served"), key, () => {
    if (!models.length && !states.length && !unloaded.length && !loading.length) return empty();
    const load = (slot) => buttons({ name: slot, model: slot.replace(/^model /, ""), version: null, unloaded: true });
    return el("ul.served",
      models.map(modelRow),
      loading.map((slot) => aside(slot, "being made ready")),
      unloaded.map((slot) => aside(slot, "unloaded", load(slot))),
      states.map(stateRow));
  });
  say($("generation"), `generation ${catalog.generation}`);
  tryIt.show(models);
}

function empty() {
  const line = (text) => el("div.command", el("code", text), copyable(text, "copy", "the command"));
  return el("div.empty",
    el("p", el("b", "Nothing is served yet."), " Publish a model or a state to the stream, and it is here in a moment:"),
    line("hotserve publish model model.json --name mine --version 1 --stream STREAM --to s3://BUCKET/models"),
    line("hotserve publish state 42 --stream STREAM"),
    el("p.soft", "With ", el("code", "hotserve dev"), ", ", el("code", "--dev"), " takes the place of ", el("code", "--stream"), " and ", el("code", "--to"), "."));
}

const STAGES = [
  ["stream", "on its way here"], ["fetch", "fetched"], ["verify", "verified"], ["probe", "tried"],
  ["load", "loaded"], ["warm", "warmed up"], ["persist", "written down"], ["swap", "swapped"],
];

function stages(entry) {
  const there = STAGES.map(([name]) => [name, entry.stages?.[name] ?? 0]).filter(([, s]) => s > 0);
  if (!there.length) return null;
  const total = there.reduce((sum, [, s]) => sum + s, 0);
  const most = [...there].sort((a, b) => b[1] - a[1]).filter(([, s], i) => i < 3 && s > total / 100);
  const bar = svg("svg", { class: "stages", viewBox: "0 0 1000 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  let x = 0;
  for (const [name, s] of there) {
    const wide = (s / total) * 1000;
    const part = svg("rect", { class: `stage-${name}`, x, y: 0, width: Math.max(wide - 2, 1), height: 8 });
    part.append(svg("title", {}, `${name} ${seconds(s)}`));
    bar.append(part);
    x += wide;
  }
  return el("div.took", { title: there.map(([name, s]) => `${name} ${seconds(s)}`).join(", ") },
    bar, el("p", el("b", seconds(total)), " ", most.map(([name, s]) => `${name} ${seconds(s)}`).join(" · ")));
}

function entryRow(entry) {
  const at = Date.parse(entry.at);
  const level = { applied: "good", unpinned: "good", loaded: "good", rejected: "bad", quarantined: "bad", fell_back: "warn", reload_failed: "warn" }[entry.outcome] ?? "told";
  const why = [entry.by && `by ${whose[entry.by] ?? entry.by}`, (entry.slots.length > 0 || subject(entry) === "a message") && entry.reason?.replaceAll("_", " ")].filter(Boolean).join(", ");
  return el(`li.${level}`,
    el("time.when", clock(at), { datetime: entry.at, title: new Date(at).toLocaleString() }),
    el("div.entry",
      el("p.what",
        el("span.slots", entry.slots.length ? entry.slots.map((slot, i) => el("span", { title: entry.versions[i] ?? "" }, i > 0 && ", ", slot.replace(/^(model|state) /, ""), !TO[entry.outcome] && el("span.soft", ` ${version(entry.versions[i])}`))) : subject(entry)),
        el(`span.badge.${level}`, said[entry.outcome] ?? entry.outcome.replaceAll("_", " ")),
        TO[entry.outcome] && entry.versions[0] && el("span", `to ${version(entry.versions[0])}`),
        entry.publish_to_serving_seconds !== undefined && el("span.soft", `${seconds(entry.publish_to_serving_seconds)} after publication`),
        why && el("span.soft", why)),
      entry.detail && el("p.detail", entry.detail),
      entry.signers?.length > 0 && el("p.soft", `signed by ${entry.signers.join(", ")}`),
      stages(entry)));
}

function timeline() {
  const shown = world.history.slice(0, rows);
  rebuild($("timeline"), shown.map(({ id, at }) => [id, at]), () => (shown.length ? shown.map(entryRow) : el("li.nothing.soft", "Nothing has happened yet.")));
  $("more").hidden = world.history.length <= rows;
  rebuild($("stages-key"), STAGES, () => STAGES.map(([name, words]) => el("span", { title: words }, el(`i.stage-${name}`, { "aria-hidden": "true" }), name)));
}

function sources() {
  const { pulse } = world;
  if (!pulse) return;
  const { stream, artifacts, manifest } = pulse;
  const row = (name, contact, trouble, never, note) => {
    const level = trouble ? "bad" : contact ? "good" : "none";
    return [name, level, contact, trouble?.code, never, note];
  };
  const shards = Object.entries(stream.shards);
  const all = [
    row("Kinesis", stream.last_contact, stream.trouble, "no answer yet", shards.length ? [...new Set(shards.map(([, { via }]) => via))].join(" and ") : ""),
    row("S3", artifacts.last_contact, artifacts.trouble, "not asked yet", "artifacts"),
    manifest ? row("Manifest", manifest.last_contact, manifest.trouble, "not read yet", plural(manifest.entries, "message")) : ["Manifest", "none", null, null, "none is kept", ""],
  ];
  rebuild($("sources"), all, () => all.map(([name, level, contact, trouble, never, note]) =>
    el(`li.${level}`, el("i.dot", { "aria-hidden": "true" }), el("b", name), el("span.soft", note),
      el("span.right", trouble ? `${trouble.replaceAll("_", " ")}, last ` : "", contact ? since(Date.parse(contact)) : never))));
  const shown = shards.map(([id, shard]) => [id, shard.via, shard.last_record, lagOf(shard, now()) > 10000]);
  // The lag runs on between answers: its number is put in below.
  rebuild($("shards"), shown, () => (shown.length ? shown.map(([id, via, record, late]) =>
    el(`li${late ? ".late" : ""}`, el("span.shard", id.replace(/^shardId-0*(?=\d)/, "shard "), { title: id }), el("span.soft", via),
      el("span.soft", record ? "last record " : "no record yet", record && since(Date.parse(record))), el("b.lag", { "data-shard": id }))) : el("li.soft", "No shard is read.")));
  for (const node of $("shards").querySelectorAll(".lag")) {
    const shard = stream.shards[node.dataset.shard];
    const lag = shard ? lagOf(shard, now()) : 0;
    say(node, lag < 1000 ? "< 1 s" : span(lag));
  }
}

function show() {
  verdict();
  about();
  tiles();
  traffic();
  served();
  timeline();
  sources();
  ages();
}

// --- begin

admin.start(() => {
  served();
  refresh();
});
tryIt.start();
$("kinds").addEventListener("change", (event) => {
  kind = event.target.value;
  show();
});
$("more").addEventListener("click", () => {
  rows += 20;
  timeline();
});
listen();
// An EventSource comes back by itself when the connection breaks, and not when it is refused.
setInterval(listen, 5000);
setInterval(() => {
  const silent = now() - world.link.heard;
  if (world.link.state === "live" && silent > 5000) {
    // No pulse: the connection hangs.
    lost();
  } else if (world.link.state === "lost" && events.readyState === EventSource.OPEN && silent < 2000) {
    world.link.state = "live";
  } else if (world.link.state === "lost" && Math.min(silent, Date.now() - begun) > 10000) {
    // What hangs so long may be cut without a word: nobody but this page would ever notice.
    events.close();
    listen();
  }
  // While pulses come, they show.
  if (world.link.state !== "live") show();
}, 1000);
