// Draws the dashboards from what Prometheus answered, each panel where its gridPos says, and looks at the drawing in
// headless Chromium. It is not Grafana; but what is empty, overlapping or cut here is so there too. The first argument is
// the file that scripts/prometheus.py writes, the second a folder for pictures.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");
const { page } = require("./dashboards_page.cjs");

// Panels that may be empty after the minute that scripts/prometheus.py lives through, each with the reason.
const EMPTY = {
};
// A large screen, and the narrowest on which Grafana still makes 24 columns.
const WIDTHS = [1600, 1280];

// Runs in the page: everything that is wrong with how it looks.
function look() {
  const wrong = [];
  const panels = [...document.querySelectorAll(".panel")];
  const name = (panel) => panel.dataset.title;
  const boxes = panels.map((panel) => panel.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) {
      wrong.push(`${name(panels[i])} and ${name(panels[j])} overlap`);
    }
  }));
  for (const panel of panels) {
    for (const text of panel.querySelectorAll(".whole")) {
      if (text.scrollWidth > text.clientWidth + 1 || text.scrollHeight > text.clientHeight + 1) {
        wrong.push(`${name(panel)}: ${JSON.stringify(text.textContent.slice(0, 40))} is cut`);
      }
    }
    const svg = panel.querySelector("svg");
    if (svg) {
      const outer = svg.getBoundingClientRect();
      if (outer.height < 60) wrong.push(`${name(panel)}: the legend leaves the plot ${Math.round(outer.height)} pixels`);
      for (const label of svg.querySelectorAll("text")) {
        const box = label.getBoundingClientRect();
        if (box.left < outer.left - 1 || box.right > outer.right + 1) wrong.push(`${name(panel)}: the axis cuts ${label.textContent}`);
      }
    }
  }
  if (document.documentElement.scrollWidth > window.innerWidth) wrong.push("the page is wider than the screen");
  return wrong;
}

function empty(board) {
  const filled = (panel) => panel.targets.some((target) =>
    target.result.some((series) => series.values.some(([, value]) => value !== null)));
  return board.panels.filter((panel) => panel.type !== "row" && !filled(panel)).map((panel) => panel.title)
    .filter((title) => !(title in EMPTY)).map((title) => `${title} is empty`);
}

(async () => {
  const [file, folder] = process.argv.slice(2);
  const boards = JSON.parse(fs.readFileSync(file, "utf8"));
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  const wrong = [];
  try {
    for (const board of boards) {
      const found = empty(board.board);
      for (const width of WIDTHS) {
        const tab = await browser.newPage({ viewport: { width, height: 900 } });
        await tab.setContent(page(board, width));
        found.push(...(await tab.evaluate(look)).map((what) => `${what}, ${width} pixels wide`));
        if (folder) await tab.screenshot({ path: path.join(folder, `${board.name}-${width}.png`), fullPage: true });
        await tab.close();
      }
      const count = board.board.panels.filter((panel) => panel.type !== "row").length;
      console.log(`  ${board.name}: ${count} panels drawn, ${found.length} faults`);
      wrong.push(...found.map((what) => `${board.name}: ${what}`));
    }
  } finally {
    await browser.close();
  }
  if (wrong.length) throw new Error(`\n  ${wrong.join("\n  ")}`);
  console.log("dashboards: passed");
})().catch((error) => {
  console.error(`FAILED: ${error.message}`);
  process.exitCode = 1;
});
