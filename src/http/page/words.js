// What the numbers mean, in words. It knows nothing of the document.

export function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} days`;
}

// An age at a glance: the same, and still below a second.
export const age = (ms) => (ms < 1500 ? "now" : `${ms < 60000 ? `${Math.floor(ms / 1000)} s` : span(ms)} ago`);

export function seconds(s) {
  return milliseconds(s * 1000);
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 0.9995) return `${digits(ms * 1000)} µs`;
  if (ms < 999.5) return `${digits(ms)} ms`;
  return ms < 60000 ? `${digits(ms / 1000)} s` : span(ms);
}

const digits = (n) => (n < 9.95 ? n.toFixed(1).replace(/\.0$/, "") : n.toFixed(0));

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  let unit = 0;
  for (; n >= 1024 && unit < 4; unit++) n /= 1024;
  return `${unit && n < 99.95 ? n.toFixed(1) : n.toFixed(0)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function rate(n) {
  if (n >= 99950) return `${(n / 1000).toFixed(0)} k`;
  if (n >= 9995) return `${(n / 1000).toFixed(1)} k`;
  return n < 9.95 && !Number.isInteger(n) ? n.toFixed(1) : n.toFixed(0);
}

// A state's value as it stands in the answer, set out in lines where it is long. No number in it is read: JavaScript
// would round a long one, and write 1.0 as 1.
export function valueOf(answer) {
  const raw = answer.replace(/^\{"state":|\}$/g, "");
  const parts = raw.slice(0, 8000).match(/"(?:[^"\\]|\\.)*"?|[[\]{},:]|[^\s[\]{},:"]+/g) ?? [];
  let shown = parts.join("");
  if (shown.length > 80) {
    let depth = 0;
    const line = (deep) => `\n${"  ".repeat(deep)}`;
    const opens = (part) => part === "[" || part === "{";
    const closes = (part) => part === "]" || part === "}";
    const put = (part, i) => {
      if (opens(part)) return closes(parts[i + 1]) ? part : `${part}${line(++depth)}`;
      if (closes(part)) return opens(parts[i - 1]) ? part : `${line(--depth)}${part}`;
      return part === "," ? `,${line(depth)}` : part === ":" ? ": " : part;
    };
    shown = parts.map(put).join("");
  }
  return shown.length > 4000 || raw.length > 8000 ? `${shown.slice(0, 4000)}…` : shown;
}

export const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

// A version that is a place in the stream is long; its end tells it apart.
export function version(text) {
  const plain = String(text ?? "");
  return plain.length > 16 ? `…${plain.slice(-8)}` : plain;
}

export const whose = { stream: "a message", admin: "an operator", setting: "a setting" };

export const said = {
  applied: "swapped in",
  rejected: "rejected",
  pinned: "pinned",
  unpinned: "unpinned",
  rolled_back: "rolled back",
  revoked: "revoked",
  unloaded: "unloaded",
  loaded: "loaded",
  quarantined: "quarantined",
  fell_back: "fell back",
  reloaded: "read anew",
  reload_failed: "not read anew",
};
const REFUSED = ["rejected", "quarantined", "fell_back"];

// What an entry without a slot is of.
export const subject = ({ outcome, reason }) => (REFUSED.includes(outcome) || !reason ? "a message" : reason.replaceAll("_", " "));

// Why something was refused, and what to do about it.
const cures = {
  unavailable: "It is tried again by itself. If that lasts, look whether the bucket's endpoint is reachable from here.",
  slow: "It is tried again by itself. If that lasts, look at the network between here and the bucket.",
  access_denied: "Allow this server's role s3:GetObject on the object, and kms:Decrypt if it is encrypted.",
  not_found: "Upload the object, or publish a message that names the right one.",
  forbidden_uri: "Publish from a place that --allow names, or allow this one.",
  golden: "It answers its golden cases wrongly: train or convert it anew, or mend the cases, and publish a higher version.",
  contract: "Its inputs or outputs differ from those served. If that is meant, publish it under another name.",
  digest: "The object's bytes are not those announced: upload them again, and publish.",
  size: "The object's size is not the one announced, or over --max-artifact.",
  malformed: "The file is not of its format, or damaged: try it with `hotserve check`, and publish again.",
  unsupported_format: "This server reads no such format: `hotserve check` tells which it reads.",
  memory: "It does not fit the memory budget: give the server more, or let --memory-policy make room.",
  crash: "It took down the process in which it was tried. Try it with `hotserve check` on a machine of yours.",
  timeout: "It did not load in time in the process in which it was tried.",
  too_slow: "It is slower than its contract allows, or than what is served by too much.",
  unsigned: "Sign it with a key that the server knows: publish --sign.",
  bad_signature: "Its signature does not fit. If you did not expect this, find out who can write to the stream.",
  unknown_key: "Its key is not in the server's keyring: add it there, or sign with another.",
  expired: "It came too late for its own expires_at: publish it again.",
  conflict: "This version was published with another content before: publish a higher one.",
  version_jump: "Its version is far above the last: publish the next one, or raise --max-version-jump.",
  disk: "The cache's disk is full or broken: make room.",
  revoked: "It was revoked: publish a higher version.",
  rolled_back: "It was taken back: publish a higher version.",
  quarantined: "It took the server down twice. Publish a version that does not.",
};
export const cureOf = (reason) => cures[reason] ?? "What was served before is served on. Mend the message, and publish again.";

const streamCures = {
  throttled: "Too many read this stream. Use --fleet-size N or --consumer fan-out, or read the --manifest.",
  denied: "Give this server's role the permissions that the message names.",
  not_found: "Create the stream, or mend KINESIS_STREAM and AWS_REGION.",
  credentials: "Give this server credentials: a role, or AWS_ACCESS_KEY_ID and its secret.",
};

const levels = ["bad", "warn", "info"];
const LAG = 10000;

// Everything there is to say, the worst first. Each finding has a level, a title, a cure and evidence.
export function judge(world, now) {
  const found = [];
  const say = (level, title, cure, ...evidence) => found.push({ level, title, cure, evidence: evidence.filter(Boolean) });
  const { pulse, catalog, history, link, seconds, server } = world;
  if (link.state === "lost") {
    if (pulse?.draining) say("bad", "The server has shut down", "It said so before it went. This page comes back with it.", `last heard at ${clock(link.heard)}`);
    else say("bad", "This page has lost the server", "What is shown is old. Look whether the process runs and the network is open; the page tries again by itself.", link.heard && `last heard ${span(now - link.heard)} ago, at ${clock(link.heard)}`);
  }
  if (link.state === "refused") say("warn", "This page is not told how the server does", "Too many listen already, so rates and readiness are missing here. What is served and the timeline are asked for every few seconds. Close a page, or look at another instance.");
  // What it said last is no news.
  if (!pulse || link.state === "lost" || link.state === "refused") return found;
  if (pulse.draining) say("warn", "The server is shutting down", "It answers what is under way and is not ready for more. New requests belong to another instance.");
  else if (!pulse.ready) say("warn", "Not ready yet", "It takes no traffic until it has found what to serve. If this lasts, the reason says what to mend.", pulse.reason);
  for (const trouble of [stream(pulse, now), artifacts(pulse, now), manifest(pulse, now)]) if (trouble) say(...trouble);
  lag(pulse, now, say);
  failures(seconds, now, say);
  reloads(history, server, now, say);
  rejections(history, now, say);
  slots(pulse, catalog, say);
  return sorted(found);
}

const sorted = (found) => found.sort((a, b) => levels.indexOf(a.level) - levels.indexOf(b.level));

function stream({ stream: { trouble, last_contact: contact }, ready }, now) {
  if (!trouble) return null;
  const since = contact ? `for ${span(now - Date.parse(contact))}` : "since the start";
  const titles = {
    throttled: "Kinesis throttles this server's reads",
    denied: "Kinesis denies this server its reads",
    not_found: "The Kinesis stream is not there",
    credentials: "There are no credentials for Kinesis",
  };
  const title = titles[trouble.code] ?? `Kinesis has not answered ${since}`;
  const on = ready ? "What is served stays served; updates wait." : "Nothing can be found to serve until it answers.";
  const cure = streamCures[trouble.code] ?? "Look at the network, the endpoint and the AWS status of the region. It is tried again all the time.";
  const level = trouble.code === "throttled" ? "warn" : "bad";
  return [level, title, `${on} ${cure}`, `${trouble.code}: ${trouble.message}`, contact ? `last answer at ${clock(Date.parse(contact))}` : "no answer yet"];
}

function artifacts({ artifacts: { trouble, last_contact: contact } }, now) {
  if (!trouble) return null;
  const since = contact ? `for ${span(now - Date.parse(contact))}` : "yet";
  const title = trouble.code === "access_denied" ? "S3 denies this server an artifact" : `S3 has not answered ${since}`;
  return ["bad", title, `Models that are announced wait. ${cureOf(trouble.code)}`, `${trouble.code}: ${trouble.message}`];
}

function manifest({ manifest: read }, now) {
  if (!read?.trouble) return null;
  const { trouble, last_contact: contact } = read;
  const since = contact ? `since ${clock(Date.parse(contact))}` : "yet";
  return ["warn", `The manifest could not be read ${since}`, "Updates still come by the stream; a restart would find less. Look at the object and at this server's permission to read it.", `${trouble.code}: ${trouble.message}`, contact && `last read ${span(now - Date.parse(contact))} ago`];
}

function lag(pulse, now, say) {
  const { stream: { shards, trouble, clock_offset_ms: offset }, throttled_ratio: throttled, estimated_readers: readers } = pulse;
  const behind = Object.entries(shards).map(([id, shard]) => [id, lagOf(shard, now)]).filter(([, ms]) => ms > LAG);
  behind.sort((a, b) => b[1] - a[1]);
  if (behind.length && !trouble) {
    const [id, ms] = behind[0];
    say(ms > 60000 ? "bad" : "warn", `The stream is read ${span(ms)} late`, "What was published since is not served yet. If it grows, the reader is throttled or starved: see its throttling and the processor.", `${plural(behind.length, "shard")} behind, ${id} the most`);
  }
  if (throttled > 0.1) say("warn", `${Math.round(throttled * 100)} % of the reads are throttled`, streamCures.throttled, readers >= 1.5 && `about ${Math.round(readers)} instances seem to poll the busiest shard`);
  if (offset) say("warn", `This machine's clock is ${span(Math.abs(offset))} ${offset > 0 ? "behind" : "ahead"}`, "Ages and expires_at are judged by the stream's clock. Let chrony or NTP mend this one's.");
}

export const lagOf = (shard, now) => Math.max(0, now - Date.parse(shard.last_contact)) + shard.behind_ms;

function failures(seconds, now, say) {
  const minute = seconds.filter((second) => second.at > now - 60000);
  const sum = (field) => Math.round(minute.reduce((sum, second) => sum + second.all[field], 0));
  const [asked, failed] = [sum("per_second"), sum("failed_per_second")];
  if (failed > 0) {
    const share = (100 * failed) / Math.max(asked, 1);
    say(share > 1 ? "bad" : "warn", `${plural(failed, "request")} of the last minute failed`, "The log has the reason of each under its request id; 503 mostly means that more is asked than computed: add instances or threads.", `${share < 0.1 ? "under 0.1" : share.toFixed(1)} % of ${plural(asked, "request")}`);
  }
}

// A start reads all of them, and a file that is mended to what it was leaves no entry: an old failure says nothing of now.
function reloads(history, server, now, say) {
  const begun = Math.max(server ? Date.parse(server.started_at) : 0, now - 86400000);
  const seen = new Set();
  for (const entry of history) {
    const at = Date.parse(entry.at);
    if (!["reloaded", "reload_failed"].includes(entry.outcome) || seen.has(entry.reason) || at < begun) continue;
    seen.add(entry.reason);
    if (entry.outcome === "reload_failed") say("warn", `The ${subject(entry)} could not be read anew`, "Mend the file, and send SIGHUP again. What was read before is in force until then.", entry.detail, `${span(now - at)} ago, at ${clock(at)}`);
  }
}

function rejections(history, now, say) {
  const seen = new Set();
  for (const entry of history) {
    if (!entry.slots.length && !REFUSED.includes(entry.outcome)) continue;
    const names = entry.slots.length ? entry.slots : [""];
    const news = names.filter((name) => !seen.has(name));
    names.forEach((name) => seen.add(name));
    if (!REFUSED.includes(entry.outcome) || !news.length) continue;
    const at = Date.parse(entry.at);
    const evidence = [entry.reason && `${entry.reason}: ${entry.detail ?? ""}`, `${span(now - at)} ago, at ${clock(at)}`];
    if (!entry.slots.length) {
      if (now - at < 3600000) say("warn", "The last message could not be taken", "Nothing changed. Whoever published it should mend it.", ...evidence);
    } else if (entry.outcome === "fell_back") {
      say("warn", `${entry.slots.join(" and ")} began with an older version`, "What was served last was rotten, gone or quarantined: publish a newer one.", ...evidence);
    } else {
      const what = news.map((name) => `${name} ${version(entry.versions[entry.slots.indexOf(name)])}`.trim());
      say("warn", `The last update of ${what.join(" and ")} was ${said[entry.outcome]}`, `What was served before is served on. ${cureOf(entry.reason)}`, ...evidence);
    }
  }
}

function slots({ loading, unloaded, memory }, catalog, say) {
  const held = [
    ...(catalog?.models ?? []).map((model) => [`model ${model.name}`, model]),
    ...(catalog?.states ?? []).map((state) => [`state ${state.key}`, state]),
  ].filter(([, slot]) => slot.held);
  for (const [name, slot] of held) {
    const there = String(slot.held.version) === String(slot.version);
    const title = there ? `${name} is pinned to version ${version(slot.version)}` : `${name} is pinned to version ${version(slot.held.version)}, which is not here`;
    say(there ? "info" : "warn", title, "Newer versions are not served until it is unpinned.", `by ${whose[slot.held.by] ?? slot.held.by}`);
  }
  for (const name of unloaded) say("info", `${name} is unloaded`, "An operator took it away; load it to serve its newest again.");
  for (const name of loading) say("info", `${name} is being made ready`, "What is served stays until then.");
  if (memory.budget && memory.models > memory.budget * 0.9) say("warn", "The memory for models is almost used up", "The next model may not fit: give the server more, or unload one.", `${bytes(memory.models)} of ${bytes(memory.budget)}`);
}
