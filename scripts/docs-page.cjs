// What scripts/docs-page does. With a folder as its argument it leaves screenshots there.
"use strict";
const assert = require("node:assert");
const { spawn } = require("node:child_process");
const path = require("node:path");
const { chromium } = require("playwright-core");

const folder = process.argv[2];

// Starts `hotserve dev` on free ports, and answers where it is.
function start() {
  const ports = ["--port", "0", "--kinesis-port", "0", "--s3-port", "0"];
  const server = spawn(process.env.HOTSERVE, ["dev", ...ports], { stdio: ["ignore", "pipe", "inherit"] });
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

async function visit(browser, url, view) {
  const context = await browser.newContext({ viewport: view.size, colorScheme: view.scheme });
  const page = await context.newPage();
  const asked = [];
  const complaints = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  const shot = async (what, whole) => {
    if (folder) await page.screenshot({ path: path.join(folder, `${view.name}-${what}.png`), fullPage: whole });
  };

  await page.goto(`${url}/docs`);
  const operation = page.locator('.opblock:has([data-path="/predict/iris"])');
  await operation.waitFor();
  assert.equal(await page.evaluate(() => document.documentElement.classList.contains("dark-mode")), view.scheme === "dark");
  await shot("page", true);

  await operation.locator(".opblock-summary-control").click();
  await operation.getByRole("button", { name: "Execute" }).click();
  await operation.locator(".live-responses-table .response-col_status", { hasText: "200" }).waitFor();
  const shown = await operation.locator(".live-responses-table").innerText();
  assert.match(shown, /"predictions":/);
  assert.match(shown, /"name": "iris"/);
  assert.match(shown, /x-model-version: 1/);
  await operation.locator(".live-responses-table").scrollIntoViewIfNeeded();
  await shot("answer", false);

  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= view.size.width, `${view.name}: the page is ${width} wide`);
  const elsewhere = asked.filter((asked) => !asked.startsWith(`${url}/`) && !asked.startsWith("data:"));
  assert.deepEqual(elsewhere, [], `${view.name}: nobody else is asked`);
  assert.deepEqual(complaints, [], `${view.name}: the console is empty`);
  await context.close();
  console.log(`  ${view.name}: ${asked.filter((asked) => !asked.startsWith("data:")).length} requests, a prediction`);
}

(async () => {
  const { server, url } = start();
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  try {
    const at = await url;
    await visit(browser, at, { name: "desktop", size: { width: 1280, height: 900 }, scheme: "light" });
    await visit(browser, at, { name: "phone", size: { width: 390, height: 844 }, scheme: "dark" });
    console.log("docs-page: passed");
  } finally {
    await browser.close();
    server.kill("SIGTERM");
  }
})().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
