// What scripts/page does.
"use strict";
const assert = require("node:assert");
const { spawn, execFileSync } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const { chromium } = require("playwright-core");

const shots = process.argv[2];
const LOAD = Number(process.env.LOAD ?? 6) * 1000;
// All that a first visit may take, in bytes.
const MOST = 150_000;
const KINESIS_DOWN = '[[fault]]\non = ["kinesis:*"]\nanswer = "unavailable"\n';
const S3_DOWN = '[[fault]]\non = ["s3:GetObject"]\nanswer = "unavailable"\n';
const IRIS = { instances: [[5.1, 3.5, 1.4, 0.2]] };

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "hotserve-page-"));
const faults = path.join(folder, "faults.toml");
const environment = { ...process.env, XDG_RUNTIME_DIR: folder };
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// Starts `hotserve dev` on free ports, and answers where it is.
function start() {
  fs.writeFileSync(faults, "");
  const ports = ["--port", "0", "--kinesis-port", "0", "--s3-port", "0", "--faults", faults];
  const server = spawn(process.env.HOTSERVE, ["dev", ...ports], { env: environment, stdio: ["ignore", "pipe", "ignore"] });
  const url = new Promise((resolve, reject) => {
    let text = "";
    server.stdout.on("data", (data) => {
      text += data;
      const found = text.match(/is ready: (http:\/\/localhost:\d+)/);
      if (found) resolve(found[1]);
    });
    server.once("exit", () => reject(new Error("hotserve dev has ended")));
  });
  return { server, url };
}

function publish(url, ...what) {
  execFileSync(process.env.HOTSERVE, ["publish", ...what, "--dev", new URL(url).port], { env: environment, stdio: "pipe" });
}

// The token that `hotserve dev` leaves for commands with --dev.
function token(url) {
  const note = fs.readdirSync(folder, { recursive: true }).find((name) => name.endsWith(`${new URL(url).port}.json`));
  return JSON.parse(fs.readFileSync(path.join(folder, note), "utf8")).admin_token;
}

// Asks for predictions and states, some hundred a second, until it is told to end.
function load(url) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  let on = true;
  const ask = (at, body) => new Promise((done) => {
    const request = http.request(`${url}${at}`, { agent, method: body ? "POST" : "GET" }, (answer) => {
      answer.resume();
      answer.once("end", done);
    });
    request.once("error", done);
    request.end(body && JSON.stringify(body));
  });
  const row = { amount: 912.5, hour: 3, distance_km: 840, minutes_since_last: 2.5, merchant_risk: 0.71, account_age_days: 40, is_online: 1 };
  const many = { instances: Array(400).fill(row) };
  (async () => {
    for (let i = 0; on; i++) {
      const busy = 4 + Math.round(3 * Math.sin(Date.now() / 20_000));
      await Promise.all(Array.from({ length: busy }, () => ask("/predict/iris", IRIS)));
      await ask("/state");
      if (i % 25 === 0) await ask("/predict/fraud", many);
      await sleep(10 + Math.random() * 8);
    }
    agent.destroy();
  })();
  return () => (on = false);
}

// What the page asks for, what it weighs, and what the browser complains about.
async function watch(page, url) {
  const seen = { elsewhere: [], complaints: [], bytes: 0 };
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("data:")) seen.elsewhere.push(request.url());
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.complaints.push(`${message.text()} ${message.location().url}`);
  });
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  const open = new Map();
  session.on("Network.dataReceived", ({ requestId, dataLength }) => {
    open.set(requestId, (open.get(requestId) ?? 0) + dataLength);
    seen.bytes += dataLength;
  });
  // What was packed weighs less, and headers weigh too.
  session.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => {
    seen.bytes += encodedDataLength - (open.get(requestId) ?? 0);
  });
  return seen;
}

const VIEWS = [
  ["desktop-light", 1280, 900, "light"], ["desktop-dark", 1280, 900, "dark"],
  ["phone-light", 390, 844, "light"], ["phone-dark", 390, 844, "dark"],
];

// Nothing may stick out, however narrow or wide; and how it looks.
async function show(page, scene) {
  for (const [name, width, height, colorScheme] of [...VIEWS, ["narrow", 360, 740, "light"], ["wall", 1920, 1080, "dark"]]) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme });
    await page.waitForTimeout(250);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= width, `${scene}, ${name}: the page is ${wide} wide`);
    if (shots && name !== "narrow") await page.screenshot({ path: path.join(shots, `${scene}-${name}.png`), fullPage: true });
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: "light" });
}

// Contrast, names and structure, as far as a program can tell.
async function look(page) {
  const faults = await page.evaluate(() => {
    const found = [];
    const visible = (node) => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
    for (const node of document.querySelectorAll("button, a, input, select, textarea")) {
      const name = node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent;
      if (visible(node) && !name.trim()) found.push(`no name: ${node.outerHTML.slice(0, 80)}`);
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => found.push(`twice: #${id}`));
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (node) => {
      for (; node; node = node.parentElement) {
        const color = rgb(getComputedStyle(node).backgroundColor);
        if (color[3] === 255) return color;
      }
      return [255, 255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !visible(node) || node.closest(".hidden, .skip, option")) continue;
      const style = getComputedStyle(node);
      const color = rgb(node instanceof SVGElement ? style.fill : style.color);
      const [one, other] = [light(color), light(ground(node))].sort((a, b) => b - a);
      const ratio = (one + 0.05) / (other + 0.05);
      if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
    return [...new Set(found)];
  });
  assert.deepEqual(faults, []);
}

// Shows the files of PAGE, if it is set, in place of the program's.
async function own(page, url) {
  if (!process.env.PAGE) return;
  const types = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript" };
  const file = (name) => ({ body: fs.readFileSync(path.join(process.env.PAGE, name)), contentType: types[path.extname(name)] });
  await page.route(`${url}/`, (route) => route.fulfill(file("index.html")));
  await page.route(`${url}/page/*`, (route) => route.fulfill(file(path.basename(new URL(route.request().url()).pathname))));
}

// A way to the server on which a connection that listens can be cut without a word.
async function between(url) {
  const pairs = [];
  const proxy = net.createServer((client) => {
    const server = net.connect(new URL(url).port, "localhost");
    const pair = { client, server, listens: false };
    pairs.push(pair);
    client.on("data", (data) => (pair.listens ||= data.includes("GET /events")));
    client.pipe(server).pipe(client);
    for (const side of [client, server]) side.on("error", () => {});
  });
  await new Promise((done) => proxy.listen(0, "localhost", done));
  const cut = () => pairs.filter(({ listens }) => listens).forEach(({ client, server }) => {
    server.unpipe(client);
    server.destroy();
  });
  const close = () => {
    proxy.close();
    pairs.forEach(({ client, server }) => [client, server].forEach((side) => side.destroy()));
  };
  return { at: `http://localhost:${proxy.address().port}`, cut, close };
}

// What goes wrong between the page and the server.
async function wire(context, url) {
  const { at, cut, close } = await between(url);
  const page = await context.newPage();
  await own(page, at);
  // A browser whose clock is an hour late.
  await page.addInitScript(() => {
    const { now } = Date;
    Date.now = () => now() - 3_600_000;
  });
  // Something happens between the answer and its arrival.
  await page.route(`${at}/history?*`, async (route) => {
    const response = await route.fetch();
    publish(url, "state", "1", "--key", "meanwhile");
    await sleep(1500);
    await route.fulfill({ response });
  }, { times: 1 });
  await page.goto(`${at}/`);
  await page.locator("#timeline li", { hasText: "meanwhile" }).waitFor();
  await page.waitForTimeout(2500);
  assert.equal(await page.locator("#timeline li", { hasText: "meanwhile" }).count(), 1, "what comes meanwhile stays");
  assert.equal(await page.locator("#link-text").innerText(), "live");
  cut();
  await page.locator("#headline", { hasText: "lost the server" }).waitFor();
  assert.match(await page.locator("#evidence").innerText(), /last heard [5-9]\.\d s ago/);
  await page.locator("#link[data-state=live]").waitFor({ timeout: 20_000 });
  await page.locator("#headline", { hasText: "All is well" }).or(page.locator("#headline", { hasText: "The last update" })).waitFor();
  await page.close();
  close();
  console.log("  a connection that hangs is made anew, whatever the browser's clock says");
}

// What seldom happens, told by the page's own modules.
async function seldom(page, url) {
  const titles = (history) => page.evaluate(async (history) => {
    const { judge } = await import("/page/words.js");
    const pulse = { ready: true, stream: { shards: {} }, artifacts: {}, memory: {}, loading: [], unloaded: [] };
    const at = new Date().toISOString();
    const entries = history.map((entry) => ({ at, slots: [], versions: [], ...entry }));
    return judge({ pulse, history: entries, link: { state: "live" }, seconds: [] }, Date.now()).map(({ title }) => title);
  }, history);
  const [read, failed] = ["reloaded", "reload_failed"].map((outcome) => ({ outcome, reason: "trusted_keys" }));
  const refused = { outcome: "rejected", reason: "malformed" };
  assert.deepEqual(await titles([read, refused]), ["The last message could not be taken"]);
  assert.deepEqual(await titles([failed, read]), ["The trusted keys could not be read anew"]);
  assert.deepEqual(await titles([{ ...read, reason: "certificate" }, failed]), ["The trusted keys could not be read anew"]);
  assert.deepEqual(await titles([read, failed]), []);

  // A row that is no form is written out whole, and one that is too long is not.
  for (const [shape, values] of [[[-1, 100], 100], [[-1, 300, 300], 0]]) {
    await page.route(`${url}/models`, async (route) => {
      const catalog = await (await route.fetch()).json();
      await route.fulfill({ json: { ...catalog, models: [{ ...catalog.models[0], inputs: [{ name: "x", datatype: "FP32", shape }] }] } });
    });
    await page.goto(`${url}/`);
    await page.locator("#try-body").waitFor();
    const body = await page.locator("#try-body").inputValue();
    assert.equal(body && JSON.parse(body).instances[0].length, values || "");
    assert.equal(await page.locator("#try-note").isVisible(), !values);
    await page.unroute(`${url}/models`);
  }

  // Commands by certificate alone.
  await page.evaluate(async () => (await import("/page/admin.js")).setAdmin({ here: true, port: null, token: false }));
  await page.getByRole("button", { name: "Change" }).first().waitFor();
  await page.getByRole("button", { name: "About commands" }).click();
  await page.locator("#token-dialog", { hasText: "client certificate" }).waitFor();
  assert.ok(!(await page.getByLabel("Admin token").isVisible()), "no token is asked for");
  console.log("  reloads, long rows and commands without a token are told");
}

async function main(browser, url) {
  const port = new URL(url).port;
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce" });
  const page = await context.newPage();
  await own(page, url);
  const seen = await watch(page, url);
  const headline = page.locator("#headline");
  const says = (text, timeout = 20_000) => headline.filter({ hasText: text }).waitFor({ timeout });

  // Loaded once, never again.
  await page.goto(`${url}/`);
  await page.evaluate(() => (window.loadedOnce = true));
  await says("All is well");
  await page.locator("#served", { hasText: "fraud" }).waitFor();
  await page.waitForTimeout(2500);
  assert.ok(seen.bytes > 5_000 && seen.bytes <= MOST, `${seen.bytes} bytes came`);
  console.log(`  a first visit takes ${(seen.bytes / 1000).toFixed(0)} kB`);
  await show(page, "idle");
  await look(page);

  // What is published shows.
  publish(url, "state", '{"eur":1.08,"usd":1.0,"gbp":0.86,"of":12345678901234567890}');
  await page.locator("#served pre", { hasText: '"usd":1.0,"gbp":0.86,"of":12345678901234567890' }).waitFor();
  publish(url, "model", "models/samples/iris/retrained.json", "--name", "iris", "--version", "2");
  const iris = page.locator(".served > li", { has: page.locator("b", { hasText: /^iris$/ }) });
  await iris.locator(".version", { hasText: /^2/ }).waitFor();
  await page.locator("#timeline li.good", { hasText: "iris 2" }).first().waitFor();
  console.log("  a state and a model show when they are published");

  // A prediction by the form, and by JSON.
  await iris.getByRole("button", { name: "Try" }).click();
  await page.locator("#try").getByLabel("sepal length").fill("5.1");
  await page.locator("#try").getByRole("button", { name: "Predict" }).click();
  await page.locator("#try-answer .badge", { hasText: "200" }).waitFor();
  assert.match(await page.locator("#try-answer").innerText(), /"label": "setosa|versicolor|virginica"[\s\S]*x-model-version\s+2/);
  await page.locator("#try-forms").getByLabel("JSON").check();
  assert.equal(JSON.parse(await page.locator("#try-body").inputValue()).instances[0].sepal_length, 5.1);
  await page.locator("#try-body").fill(JSON.stringify(IRIS));
  await page.locator("#try").getByRole("button", { name: "Predict" }).click();
  await page.locator("#try-answer pre", { hasText: "setosa" }).waitFor();
  await page.locator("#try-forms").getByLabel("Form").check();
  console.log("  a prediction can be had by form and by JSON");

  // Under load, with swaps.
  const end = load(url);
  const begun = Date.now();
  for (let version = 3; Date.now() - begun < LOAD || version < 5; version++) {
    const file = version % 2 ? "model.json" : "retrained.json";
    publish(url, "model", `models/samples/iris/${file}`, "--name", "iris", "--version", String(version));
    await iris.locator(".version", { hasText: new RegExp(`^${version}`) }).waitFor();
    await sleep(Math.max(1500, LOAD / 9));
  }
  const tile = page.locator(".tile b").first();
  assert.ok(parseFloat(await tile.innerText()) > 5, `${await tile.innerText()} requests a second are shown`);
  assert.ok((await page.locator("#chart-rate path.mark.swap").count()) >= 4, "swaps are marked");
  // The numbers of a moment, by pointer and by keyboard.
  await page.locator("#chart-time svg").hover({ position: { x: 520, y: 60 } });
  assert.match(await page.locator("#chart-time .tip").innerText(), /median[\s\S]*p99/);
  if (shots) await page.screenshot({ path: path.join(shots, "pointer-desktop-light.png") });
  await page.mouse.move(0, 0);
  await page.locator("#chart-rate svg").press("ArrowLeft");
  assert.match(await page.locator("#chart-rate .tip").innerText(), /answered/);
  await page.locator("#chart-rate svg").blur();
  await says("All is well");
  await show(page, "loaded");
  console.log("  under load it shows rates, times and swaps");

  // A model that does not pass is told with its reason.
  const broken = path.join(folder, "broken.json");
  fs.writeFileSync(broken, "no model");
  publish(url, "model", broken, "--name", "iris", "--version", "90", "--format", "linear");
  await says("The last update of model iris 90 was rejected");
  assert.match(await page.locator("#verdict").innerText(), /malformed/);
  await page.locator("#timeline li.bad .detail", { hasText: "malformed" }).first().waitFor();
  assert.match(await page.title(), /^! The last update/);
  await show(page, "rejected");
  await look(page);
  console.log("  a rejected model shows with its reason");

  // Back by the page; a wrong token is told.
  const served = parseInt(await iris.locator(".version").innerText(), 10);
  await page.getByRole("button", { name: "Unlock commands" }).click();
  await page.getByLabel("Admin token").fill(token(url));
  await page.locator("#token-keep").click();
  await iris.getByRole("button", { name: "Change iris" }).or(iris.getByRole("button", { name: "Change model iris" })).click();
  const dialog = page.locator("#command-dialog");
  assert.match(await dialog.innerText(), new RegExp(`model iris \\(${served}\\) is taken back`));
  if (shots) await page.screenshot({ path: path.join(shots, "command-desktop-light.png") });
  // What came since the dialog was opened is not taken back unseen.
  publish(url, "model", "models/samples/iris/retrained.json", "--name", "iris", "--version", "91");
  await iris.locator(".version", { hasText: /^91/ }).waitFor();
  await dialog.getByRole("button", { name: "Roll back model iris" }).click();
  await dialog.locator(".outcome.bad", { hasText: `Version 91 is served now, and this said ${served}` }).waitFor();
  assert.match(await dialog.innerText(), /model iris \(91\) is taken back/);
  if (shots) await page.screenshot({ path: path.join(shots, "changed-desktop-light.png") });
  assert.match(await iris.locator(".version").innerText(), /^91/);
  await dialog.getByRole("button", { name: "Roll back model iris" }).click();
  await dialog.locator(".outcome.good").waitFor();
  await dialog.getByRole("button", { name: "Close" }).click();
  await iris.locator(".version", { hasText: new RegExp(`^${served}`) }).waitFor();
  await page.locator("#timeline li.told", { hasText: "by an operator" }).first().waitFor();
  assert.equal(await page.evaluate(() => localStorage.length), 0, "the token is not kept");
  console.log(`  a rollback by the page brings version ${served} back, and none that it did not tell of is sent`);

  // Away by the page, and back.
  const tell = async (name, action) => {
    await page.getByRole("button", { name: new RegExp(`Change (model )?${name}$`) }).click();
    await dialog.getByLabel(action, { exact: true }).check();
    await dialog.getByRole("button", { name: `${action} model ${name}` }).click();
    await dialog.locator(".outcome.good").waitFor();
    await dialog.getByRole("button", { name: "Close" }).click();
  };
  await tell("fraud", "Unload");
  await page.locator(".served .aside", { hasText: "unloaded" }).waitFor();
  await page.getByRole("button", { name: "Change model fraud" }).click();
  assert.deepEqual(await dialog.locator("#commands label").allInnerTexts(), ["Load"]);
  await dialog.getByRole("button", { name: "Close" }).click();
  await page.locator("#findings", { hasText: "model fraud is unloaded" }).waitFor();
  await tell("fraud", "Load");
  await page.locator(".served .version", { hasText: "sample" }).waitFor();
  const pin = page.waitForRequest(`${url}/admin/control`);
  await tell("iris", "Pin");
  assert.equal((await pin).postDataJSON().version, served, "it pins the version that it names");
  await page.locator("#findings", { hasText: "model iris is pinned" }).waitFor();
  await tell("iris", "Unpin");
  console.log("  a model is unloaded and loaded, pinned and unpinned by the page");

  // S3 away: a model that is announced waits, and comes.
  fs.writeFileSync(faults, S3_DOWN);
  await sleep(1500);
  // Bytes that are not in the cache.
  const late = path.join(folder, "late.json");
  fs.writeFileSync(late, `${fs.readFileSync("models/samples/iris/model.json", "utf8")}\n`);
  publish(url, "model", late, "--name", "late", "--version", "1");
  await says("S3 has not answered", 60_000);
  fs.writeFileSync(faults, "");
  await page.locator(".served b", { hasText: "late" }).waitFor({ timeout: 90_000 });
  await headline.filter({ hasNotText: "S3" }).waitFor();
  console.log("  S3 away is told in words, and that it is back");

  // Kinesis away.
  fs.writeFileSync(faults, KINESIS_DOWN);
  await says("Kinesis has not answered", 60_000);
  assert.match(await page.locator("#verdict").innerText(), /What is served stays served/);
  assert.match(await page.title(), /^✕ Kinesis/);
  await page.waitForTimeout(shots ? 8_000 : 500);
  await show(page, "kinesis-down");
  await look(page);
  await page.emulateMedia({ colorScheme: "dark" });
  await look(page);
  await page.emulateMedia({ colorScheme: "light" });
  fs.writeFileSync(faults, "");
  await headline.filter({ hasNotText: "Kinesis" }).waitFor({ timeout: 60_000 });
  end();
  console.log("  Kinesis away is told in words, and that it is back");

  assert.ok(await page.evaluate(() => window.loadedOnce), "the page was not loaded again");
  assert.deepEqual(seen.elsewhere, [], "nobody else is asked");
  assert.deepEqual(seen.complaints, [], "the console is empty");

  // Before there is anything.
  const bare = await context.newPage();
  await own(bare, url);
  await bare.route(`${url}/models`, (route) => route.fulfill({ json: { generation: 1, models: [], states: [] } }));
  await bare.goto(`${url}/`);
  await bare.locator(".empty", { hasText: "hotserve publish model" }).waitFor();
  await show(bare, "empty");
  // No place to listen: the rest is shown all the same.
  await bare.unroute(`${url}/models`);
  await bare.route(`${url}/events?pulse`, (route) => route.fulfill({ status: 503, json: {} }));
  await bare.goto(`${url}/`);
  await bare.locator("#headline", { hasText: "is not told" }).waitFor();
  await bare.locator("#served", { hasText: "iris" }).waitFor();
  // It asks for a place again and again, and has lost nothing.
  const headlines = await bare.evaluate(() => new Promise((done) => {
    const found = new Set();
    new MutationObserver(() => found.add(document.getElementById("headline").textContent)).observe(document.getElementById("headline"), { childList: true });
    setTimeout(() => done([...found]), 6500);
  }));
  assert.deepEqual(headlines, []);
  console.log("  an empty server shows the command to publish, and one that is full is told");
  await seldom(bare, url);
  await bare.close();
  await wire(context, url);
  return { page, says, port };
}

(async () => {
  if (shots) fs.mkdirSync(shots, { recursive: true });
  const { server, url } = start();
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  try {
    const { page, says } = await main(browser, await url);
    // The end: from here on the browser may complain that nobody answers.
    server.kill("SIGTERM");
    await says(/shut down|lost the server/);
    await show(page, "gone");
    console.log("  a server that went is told");
    console.log("page: passed");
  } finally {
    await browser.close();
    server.kill("SIGTERM");
    fs.rmSync(folder, { recursive: true, force: true });
  }
})().catch((error) => {
  console.error(error);
  // Whatever still asks.
  process.exit(1);
});
