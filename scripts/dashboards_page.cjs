// One dashboard as a page: panels by gridPos, with time series as SVG, stats and tables.
"use strict";

const COLORS = ["#56a64b", "#e0b400", "#3274d9", "#e55400", "#e02f44", "#8f3bb8", "#1f9e9e", "#8ab8ff", "#ff9830", "#c0d8ff",
  "#37872d", "#a352cc", "#8e8e8e", "#fa6400", "#5794f2"];
const NAMED = { green: "#56a64b", yellow: "#e0b400", red: "#e02f44", orange: "#ff780a", blue: "#3274d9", purple: "#8f3bb8",
  "dark-red": "#ad0317", "super-light-blue": "#8ab8ff", text: "#222" };
const ROW = 38, GAP = 8;

const escape = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");

function scaled(value, steps, digits = 3) {
  const [factor, unit] = steps.find(([factor]) => Math.abs(value) >= factor) || steps.at(-1);
  return `${Number((value / factor).toPrecision(digits))}${unit}`;
}

function shown(value, unit, ends) {
  if (value === null || value === undefined) return "–";
  const thousand = [[1e9, " G"], [1e6, " M"], [1e3, " K"], [1, ""]];
  switch (unit) {
    case "s": return value === 0 ? "0 s" : scaled(value, [[86400, " days"], [3600, " hours"], [60, " min"], [1, " s"], [1e-3, " ms"], [1e-6, " µs"]]);
    case "percentunit": return `${Number((value * 100).toPrecision(3))}%`;
    case "bytes": return value === 0 ? "0 B" : scaled(value, [[2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"], [1, " B"]]);
    case "Bps": return value === 0 ? "0 B/s" : scaled(value, [[1e6, " MB/s"], [1e3, " kB/s"], [1, " B/s"]]);
    case "reqps": return `${scaled(value, thousand)} req/s`;
    case "ops": return `${scaled(value, thousand)} ops/s`;
    case "cps": return `${scaled(value, thousand)} c/s`;
    case "dateTimeFromNow": return `${scaled(Math.max(0, ends - value / 1000), [[3600, " hours"], [60, " min"], [1, " s"]], 2)} ago`;
    case "short": return scaled(value, thousand);
    default: return String(Number(value.toPrecision(12)));
  }
}

function legend(format, metric) {
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? "");
}

// A field's settings: those of all, then of the overrides that match its name.
function field(panel, name) {
  const { custom = {}, ...defaults } = panel.fieldConfig.defaults;
  const settings = { ...defaults, ...Object.fromEntries(Object.entries(custom).map(([key, value]) => [`custom.${key}`, value])) };
  for (const { matcher, properties } of panel.fieldConfig.overrides) {
    const matches = matcher.id === "byName" ? matcher.options === name : new RegExp(`^(?:${matcher.options})$`).test(name);
    if (matches) for (const { id, value } of properties) settings[id] = value;
  }
  return settings;
}

function ticks(most) {
  const raw = most / 3 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((by) => by * power).find((by) => by >= raw);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, at) => at * step);
}

function plot(panel, { start, end, marks }, width, height) {
  const lines = panel.targets.flatMap((target) => target.result.map((series) => {
    const name = legend(target.legendFormat, series.metric) || "value";
    return { name, values: series.values, settings: field(panel, name) };
  }));
  lines.forEach((line, at) => {
    const fixed = line.settings.color?.mode === "fixed" && line.settings.color.fixedColor;
    line.color = fixed ? NAMED[fixed] || fixed : COLORS[at % COLORS.length];
    line.right = line.settings["custom.axisPlacement"] === "right";
    line.stacked = line.settings["custom.stacking"].mode === "normal";
    line.bars = line.settings["custom.drawStyle"] === "bars";
  });
  // Stacks, from below.
  const heights = new Map();
  for (const line of lines) {
    line.points = line.values.map(([at, value]) => {
      if (!line.stacked) return [at, 0, value];
      const base = heights.get(at) || 0;
      heights.set(at, base + (value || 0));
      return [at, base, value === null ? null : base + value];
    });
  }
  const steps = panel.fieldConfig.defaults.thresholds.steps.filter((step) => step.value !== null);
  const limits = panel.fieldConfig.defaults.custom.thresholdsStyle.mode === "off" ? [] : steps;
  const axes = [false, true].map((right) => {
    const mine = lines.filter((line) => line.right === right);
    const most = Math.max(0, ...mine.flatMap((line) => line.points.map(([, , top]) => top ?? 0)));
    const unit = mine[0]?.settings.unit || panel.fieldConfig.defaults.unit;
    return { used: mine.length > 0, most: most * 1.08 || 1, unit };
  });
  if (!axes[0].used && !axes[1].used) axes[0].used = true;
  const labels = axes.map((axis) => ticks(axis.most).map((tick) => [tick, shown(tick, axis.unit, end)]));
  const room = labels.map((of, at) => axes[at].used ? 12 + 6.2 * Math.max(...of.map(([, text]) => text.length)) : 10);
  const [left, right, top, bottom] = [room[0], room[1], 6, 18];
  const x = (at) => left + (width - left - right) * (at - start) / (end - start);
  const y = (value, axis) => top + (height - top - bottom) * (1 - value / axes[axis].most);
  const out = [];
  for (const at of [0, 1].filter((at) => axes[at].used)) {
    for (const [tick, text] of labels[at]) {
      const [anchor, where] = at ? ["start", width - right + 5] : ["end", left - 5];
      if (!at || !axes[0].used) out.push(`<line x1="${left}" x2="${width - right}" y1="${y(tick, at)}" y2="${y(tick, at)}" class="grid"/>`);
      out.push(`<text x="${where}" y="${y(tick, at) + 4}" text-anchor="${anchor}">${escape(text)}</text>`);
    }
  }
  for (let at = Math.ceil(start / 15) * 15; at < end; at += 15) {
    const text = new Date(at * 1000).toISOString().slice(11, 19);
    if (x(at) > left + 25 && x(at) < width - right - 25 && (width > 500 || at % 30 === 0)) out.push(`<text x="${x(at)}" y="${height - 4}" text-anchor="middle">${text}</text>`);
  }
  for (const { at, color } of marks) out.push(`<line x1="${x(at)}" x2="${x(at)}" y1="${top}" y2="${height - bottom}" class="mark" stroke="${NAMED[color]}"/>`);
  for (const { value, color } of limits.filter(({ value }) => value <= axes[0].most)) {
    out.push(`<line x1="${left}" x2="${width - right}" y1="${y(value, 0)}" y2="${y(value, 0)}" stroke="${NAMED[color]}" stroke-dasharray="7 4"/>`);
  }
  for (const line of lines) {
    const axis = line.right ? 1 : 0;
    if (line.bars) {
      const wide = Math.max(1, (x(start + 1) - x(start)) * 0.9);
      for (const [at, base, value] of line.points) {
        if (value === null || value === base) continue;
        out.push(`<rect x="${x(at) - wide / 2}" y="${y(value, axis)}" width="${wide}" height="${y(base, axis) - y(value, axis)}" fill="${line.color}" opacity="0.7"/>`);
      }
      continue;
    }
    let d = "", last = null;
    for (const [at, , value] of line.points) {
      if (value === null) { last = null; continue; }
      const joined = last !== null && at - last < 5;
      const stepped = line.settings["custom.lineInterpolation"] === "stepAfter";
      d += joined ? (stepped ? `H${x(at)}V${y(value, axis)}` : `L${x(at)} ${y(value, axis)}`) : `M${x(at)} ${y(value, axis)}h1`;
      last = at;
    }
    const dash = line.settings["custom.lineStyle"]?.fill === "dash" ? 'stroke-dasharray="6 6"' : "";
    out.push(`<path d="${d}" fill="none" stroke="${line.color}" stroke-width="${(line.settings["custom.lineWidth"] || 1) + 0.5}" ${dash}/>`);
  }
  const names = lines.map((line) => `<span class="key"><i style="background:${line.color}"></i>${escape(line.name)}</span>`);
  return { svg: `<svg viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" width="${width}" height="${height}">${out.join("")}</svg>`, names };
}

function stat(panel, { end }) {
  const values = panel.targets.flatMap((target) => target.result.map((series) => {
    const value = series.values.map(([, value]) => value).findLast((value) => value !== null) ?? null;
    const { unit, thresholds, noValue, decimals } = panel.fieldConfig.defaults;
    // An increase is extrapolated, and seldom whole.
    const rounded = (value) => unit === "none" && decimals !== undefined ? Number(value.toFixed(decimals)) : value;
    const step = thresholds.steps.findLast((step) => step.value === null || value >= step.value);
    const named = panel.options.textMode === "value_and_name" ? `<small>${escape(target.legendFormat)}</small>` : "";
    return `<div class="whole value" style="color:${NAMED[step.color]}">${named}${escape(value === null ? noValue : shown(rounded(value), unit, end))}</div>`;
  }));
  return `<div class="stat">${values.join("") || `<div class="value">${escape(panel.fieldConfig.defaults.noValue || "No data")}</div>`}</div>`;
}

function table(panel, { end }) {
  const organize = panel.transformations.find(({ id }) => id === "organize").options;
  // As Grafana's merge does it: rows are one where they agree in the labels that every target has.
  const of = panel.targets.map((target) => Object.keys(target.result[0]?.metric ?? {}));
  const common = of[0].filter((label) => of.every((labels) => labels.includes(label)));
  const rows = new Map();
  panel.targets.forEach((target) => target.result.forEach(({ metric, values }) => {
    const key = JSON.stringify(common.map((label) => metric[label]));
    const row = { ...rows.get(key), ...metric };
    row[`Value #${target.refId}`] = values[0][1];
    rows.set(key, row);
  }));
  const place = (column) => organize.indexByName[column] ?? 99;
  const columns = [...new Set([...rows.values()].flatMap((row) => Object.keys(row)))]
    .filter((column) => !organize.excludeByName[column]).sort((a, b) => place(a) - place(b));
  const title = (column) => organize.renameByName[column] || column;
  const cell = (row, column) => column.startsWith("Value #") ? shown(row[column], field(panel, title(column)).unit, end) : row[column] ?? "";
  // As Grafana does, long digests end in dots: they are there to be compared and copied.
  const body = [...rows.values()].map((row) => `<tr>${columns.map((column) =>
    `<td class="${column === "digest" ? "digest" : "whole"}">${escape(cell(row, column))}</td>`).join("")}</tr>`);
  return `<table><tr>${columns.map((column) => `<th class="whole">${escape(title(column))}</th>`).join("")}</tr>${body.join("")}</table>`;
}

function draw(panel, board, width) {
  const { x, y, w, h } = panel.gridPos;
  const unit = (width - 32) / 24;
  const [wide, high] = [w * unit - GAP, h * ROW - GAP];
  const at = `left:${16 + x * unit}px;top:${70 + y * ROW}px;width:${wide}px;height:${high}px`;
  if (panel.type === "row") return `<div class="row" style="${at}">▾ ${escape(panel.title)}</div>`;
  let body;
  if (panel.type === "stat") body = stat(panel, board);
  else if (panel.type === "table") body = table(panel, board);
  else {
    const inside = wide - 16;
    const { names } = plot(panel, board, inside, 100);
    // The legend's lines as Grafana breaks them, 20 pixels each and no more than a third of the panel; the rest scrolls.
    const long = names.map((name) => name.replace(/<[^>]*>/g, "").length * 6.6 + 28);
    let lines = 1, taken = 0;
    for (const length of long) {
      if (taken + length > inside) { lines += 1; taken = 0; }
      taken += length;
    }
    const keys = Math.min(lines * 20, Math.floor(high * 0.35 / 20) * 20);
    const { svg } = plot(panel, board, inside, high - 34 - keys - 6);
    body = `${svg}<div class="keys" style="height:${keys}px">${names.join("")}</div>`;
  }
  return `<div class="panel" data-title="${escape(panel.title)}" style="${at}"><h2 class="whole" title="${escape(panel.description)}">${escape(panel.title)}</h2>${body}</div>`;
}

const STYLE = `
body { margin: 0; background: #f4f5f5; font: 12px/1.4 "DejaVu Sans", sans-serif; color: #222; position: relative }
h1 { font-size: 18px; margin: 0; padding: 12px 16px 0 } p { margin: 0; padding: 2px 16px; color: #555 }
.panel { position: absolute; background: #fff; border: 1px solid #ddd; box-sizing: border-box; padding: 0 7px; overflow: hidden }
.row { position: absolute; font-size: 15px; font-weight: bold; line-height: 30px }
h2 { font-size: 13px; margin: 0; line-height: 28px; height: 28px; white-space: nowrap; overflow: hidden }
svg { display: block } svg text { font-size: 10px; fill: #555 } .grid { stroke: #eee } .mark { stroke-dasharray: 3 3; opacity: .55 }
.keys { overflow: auto; line-height: 20px } .key { white-space: nowrap; margin-right: 12px; display: inline-block }
.key i { display: inline-block; width: 12px; height: 4px; margin-right: 5px; vertical-align: middle }
.stat { display: flex; height: calc(100% - 36px) } .value { flex: 1; font-size: 26px; text-align: center; align-self: center; white-space: nowrap; overflow: hidden }
.value small { font-size: 12px; color: #555; display: block }
table { border-collapse: collapse; width: 100%; table-layout: auto } td, th { text-align: left; padding: 3px 8px; border-bottom: 1px solid #eee; white-space: nowrap }
.digest { max-width: 0; width: 30%; overflow: hidden; text-overflow: ellipsis }`;

function page(board, width) {
  const panels = board.board.panels;
  const height = 70 + ROW * Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return `<!doctype html><meta charset="utf-8"><style>${STYLE}</style><body style="height:${height}px"><h1>${escape(board.board.title)}</h1>
<p>${escape(board.board.description)}</p>${panels.map((panel) => draw(panel, board, width)).join("\n")}</body>`;
}

module.exports = { page };
