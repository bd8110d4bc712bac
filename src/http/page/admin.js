// Commands to this instance: what each will do is said before it is sent.

import { $, el } from "./dom.js";
import { version, whose } from "./words.js";

const KEY = "hotserve-admin-token";
// Of this tab alone, and gone with it.
export const token = () => sessionStorage.getItem(KEY);

let admin = null;
let slot = null;

const actions = [
  {
    code: "rollback",
    name: "Roll back",
    may: ({ unloaded }) => !unloaded,
    takes: "optional",
    says: ({ name, version: served }, to) => `What is served as ${name} (${version(served)}) is taken back${to ? `, and so is everything above version ${to}` : ""}. ${to ? `Version ${to}` : "The version before it"} is served again, if it is kept here. What is published later is served as usual.`,
  },
  {
    code: "pin",
    name: "Pin",
    may: ({ unloaded }) => !unloaded,
    takes: "optional",
    says: ({ name, version: served }, to) => `${name} stays at version ${to || version(served)}, whatever the stream says, until it is unpinned.${to && to !== String(served) ? " If that version is not kept here, it is served when it is announced again." : ""}`,
  },
  {
    code: "unpin",
    name: "Unpin",
    may: ({ held }) => Boolean(held),
    says: ({ name, held }) => (held.by === "admin" ? `${name} follows the stream again: the newest version is served at once, if there is a newer one.` : `${name} is held by ${whose[held.by]}, which a command to one instance does not lift: the server will say no.`),
  },
  {
    code: "revoke",
    name: "Revoke",
    danger: true,
    may: ({ version: served }) => Number.isInteger(served),
    takes: "needed",
    says: ({ name, version: served }, to) => `Version ${to || "…"} of ${name} is never served again on this instance. That cannot be undone.${to === String(served) ? " It is served now: the version before it takes its place, or nothing." : ""}`,
  },
  {
    code: "unload",
    name: "Unload",
    danger: true,
    may: ({ model, unloaded }) => Boolean(model) && !unloaded,
    says: ({ name, model }) => `${name} is served no more: /predict/${model} answers 404 from then on, until it is loaded again.`,
  },
  {
    code: "load",
    name: "Load",
    may: ({ unloaded }) => Boolean(unloaded),
    says: ({ name }) => `The newest version of ${name} is made ready and served.`,
  },
];

const chosen = () => actions.find(({ code }) => code === $("commands").querySelector("input:checked")?.value);

// What the server says of its commands.
export function setAdmin(facts) {
  admin = facts ?? null;
  $("unlock").textContent = tokenless() ? "About commands" : token() && admin?.here ? "Lock commands" : "Unlock commands";
}

// Commands are taken from who has shown a certificate: there is nothing to unlock them with.
const tokenless = () => Boolean(admin?.here) && admin.token === false;

export const unlocked = () => tokenless() || Boolean(admin?.here && token());

function explain() {
  const code = (text) => el("code", text);
  if (!admin) {
    return el("p", "This server takes no commands: it was started without a token. Start it with ", code("--admin-token-file FILE"), " or ", code("HOTSERVE_ADMIN_TOKEN"), " to roll back, pin and revoke from here.");
  }
  if (!admin.here) {
    return el("p", "This server takes commands on another port, ", code(String(admin.port)), ", which this page does not ask. From a machine that reaches it: ", code(`hotserve rollback --model NAME --server ADDRESS:${admin.port}`));
  }
  if (tokenless()) {
    return el("p", "This server has no token: it takes commands from whoever shows a client certificate of its ", code("--tls-client-ca"), ". Where this browser has shown one, that is enough, and the commands stand beside what is served. Without one the server says no.");
  }
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  return el("p", "With the server's token this page can roll back, pin, revoke and unload what this instance serves. It is kept in this tab only, and gone when you close it.", local && [" That of ", code("hotserve dev"), " is the ", code("admin_token"), " in ", code("hotserve-dev/PORT.json"), " below XDG_RUNTIME_DIR, or in ", code("/tmp/hotserve-dev-UID/PORT.json"), "."]);
}

export function slotOf(row, kind) {
  const id = kind === "model" ? { model: row.name } : { key: row.key };
  return { ...id, name: `${kind} ${row.name ?? row.key}`, version: row.version, held: row.held };
}

export function open(which) {
  slot = which;
  $("h-command").textContent = `Tell ${slot.name}`;
  const possible = actions.filter(({ may }) => may(slot));
  const choices = possible.map(({ code, name }, i) =>
    el("label", el("input", { type: "radio", name: "command", value: code, checked: i === 0 }), el("span", name)));
  $("commands").replaceChildren($("commands").querySelector("legend"), ...choices);
  $("command-version").value = "";
  $("outcome").textContent = "";
  $("outcome").className = "outcome";
  describe();
  $("command-dialog").showModal();
}

function describe() {
  const action = chosen();
  const field = $("command-version-field");
  field.hidden = !action.takes;
  $("command-version").required = action.takes === "needed";
  if (action.takes === "needed" && !$("command-version").value) $("command-version").value = slot.version;
  field.firstChild.textContent = action.takes === "needed" ? "Version" : action.code === "pin" ? "Version (else the one served)" : "Back to version (else the one before)";
  $("consequence").textContent = `${action.says(slot, $("command-version").value.trim())} On this instance only.`;
  $("command-send").textContent = `${action.name} ${slot.name}`;
  $("command-send").classList.toggle("danger", Boolean(action.danger));
}

function request(action, given) {
  if (action.code === "load" || action.code === "unload") {
    return [`v2/repository/models/${encodeURIComponent(slot.model)}/${action.code}`, {}];
  }
  const { model, key } = slot;
  // A pin is of the version that was named, whatever is served by now.
  const to = given ? Number(given) : action.code === "pin" && Number.isInteger(slot.version) ? slot.version : null;
  return ["admin/control", { action: action.code, ...(model ? { model } : { key }), ...(action.takes && to !== null ? { version: to } : {}) }];
}

// A rollback takes back what is served, and a version that is no number cannot be sent: with these, what is served is
// asked for once more. Says what is other than the dialog did, which then says that.
async function other(action, body) {
  if (action.code !== "rollback" && !(action.code === "pin" && body.version === undefined)) return null;
  const described = slot;
  const { models, states } = await (await fetch("models", { cache: "no-store" })).json();
  if (slot !== described) return "Another dialog was opened.";
  const row = slot.model ? models.find(({ name }) => name === slot.model) : states.find(({ key }) => key === slot.key);
  if (!row) return `${slot.name} is served no more.`;
  if (String(row.version) === String(slot.version)) return null;
  const before = version(slot.version);
  slot = slotOf(row, slot.model ? "model" : "state");
  describe();
  return `Version ${version(row.version)} is served now, and this said ${before}. Read anew what it will do, and send it again.`;
}

async function send() {
  const action = chosen();
  const [path, body] = request(action, $("command-version").value.trim());
  const outcome = $("outcome");
  const say = (kind, text) => {
    outcome.className = `outcome ${kind}`;
    outcome.textContent = text;
  };
  say("", "Sending…");
  $("command-send").disabled = true;
  let sent = false;
  try {
    const news = await other(action, body);
    if (news) {
      say("bad", `Nothing was sent. ${news}`);
      return;
    }
    sent = true;
    const answer = await fetch(path, {
      method: "POST",
      headers: { ...(token() && { authorization: `Bearer ${token()}` }), "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const done = await answer.json().catch(() => ({}));
    if (answer.status === 401 && !tokenless()) {
      sessionStorage.removeItem(KEY);
      setAdmin(admin);
      say("bad", "This is not the server's token. It is forgotten: unlock commands with the right one.");
    } else if (!answer.ok) {
      say("bad", `The server says no: ${done.detail ?? done.error ?? answer.status}`);
    } else {
      const progress = { loading: " It is being made ready; what was served is served meanwhile.", waiting: " That version is not here yet: it is served when it is announced again." };
      const serves = done.serving ? `${slot.name} serves version ${version(done.serving)} now.` : done.progress ? `${slot.name} serves nothing now.` : "";
      say("good", `Done. ${serves}${progress[done.progress] ?? ""}`);
    }
  } catch (error) {
    say("bad", sent ? `No answer came (${error.message}): look at the timeline before you send it again.` : `Nothing was sent: what is served could not be asked for (${error.message}).`);
  } finally {
    $("command-send").disabled = false;
  }
}

export function start(changed) {
  $("unlock").addEventListener("click", () => {
    if (unlocked() && !tokenless()) {
      sessionStorage.removeItem(KEY);
      setAdmin(admin);
      changed();
      return;
    }
    $("token-body").replaceChildren(explain());
    $("token-field").hidden = $("token-keep").hidden = !admin?.here || tokenless();
    $("token").value = "";
    $("token-dialog").showModal();
  });
  $("token-form").addEventListener("submit", () => {
    const given = $("token").value.trim();
    if (given) sessionStorage.setItem(KEY, given);
    setAdmin(admin);
    changed();
  });
  $("commands").addEventListener("change", () => {
    $("command-version").value = "";
    describe();
  });
  $("command-version").addEventListener("input", describe);
  $("command-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send().then(changed);
  });
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}
