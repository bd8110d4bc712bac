// Lines over the last minutes, up to ten, with what was swapped marked on them.

import { el, svg } from "./dom.js";
import { clock } from "./words.js";

// How much is shown: as much as there is, of these.
const WINDOWS = [2, 5, 10];
const HEIGHT = 170;
const EDGE = { top: 14, right: 8, bottom: 22, left: 52 };
// Samples come each second: where some are missing, the line breaks.
const GAP = 3500;
const CROWD = 40;

export class Chart {
  // `series`: [{ name, className, of(second), area }]; `ticks(max, min)`; `format(value)`.
  constructor(figure, { series, format, logarithmic, least }) {
    Object.assign(this, { figure, series, format, logarithmic, least });
    this.svg = svg("svg", { class: "chart", tabindex: "0", role: "img", height: HEIGHT });
    this.tip = el("div.tip", { hidden: true });
    figure.append(this.svg, this.tip);
    const legend = figure.querySelector(".legend");
    legend.append(...series.map(({ name, className }) => el("span", el(`i.${className}`, { "aria-hidden": "true" }), name)));
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] * (this.window / 120);
      if (!step) return;
      event.preventDefault();
      const at = Math.min(this.now, Math.max(this.now - this.window, (this.cursor ?? this.now) + step));
      this.point(this.x(at));
    });
    new ResizeObserver(() => this.seconds && this.draw(this.seconds, this.marks, this.now)).observe(figure);
  }

  x(at) {
    return EDGE.left + ((at - this.now + this.window) / this.window) * (this.width - EDGE.left - EDGE.right);
  }

  y(value) {
    const { low, high } = this;
    const part = this.logarithmic ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    return HEIGHT - EDGE.bottom - Math.min(1, part) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  draw(seconds, marks, now) {
    const minutes = (now - (seconds[0]?.at ?? now)) / 60000;
    const whole = WINDOWS.find((window) => window >= minutes - 0.05) ?? WINDOWS.at(-1);
    Object.assign(this, { seconds, marks, now, window: whole * 60000, width: Math.max(240, this.figure.clientWidth) });
    const shown = seconds.filter((second) => second.at >= now - this.window - 1000);
    const values = shown.flatMap((second) => this.series.map(({ of }) => of(second))).filter((value) => value > 0);
    const ticks = this.logarithmic ? this.decades(values) : this.steps(values);
    const parts = [];
    for (const tick of ticks) {
      const y = this.y(tick);
      parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }));
      parts.push(svg("text", { class: "tick", x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, this.format(tick)));
    }
    const step = (this.width < 420 ? { 2: 1, 5: 2, 10: 5 } : { 2: 0.5, 5: 1, 10: 2 })[whole];
    for (let minutes = 0; minutes <= whole; minutes += step) {
      const anchor = minutes === whole ? "start" : minutes === 0 ? "end" : "middle";
      const text = minutes ? `−${minutes >= 1 && Number.isInteger(minutes) ? `${minutes} min` : `${minutes * 60} s`}` : "now";
      parts.push(svg("text", { class: "tick", x: this.x(now - minutes * 60000), y: HEIGHT - 5, "text-anchor": anchor }, text));
    }
    const inside = marks.filter((mark) => mark.at >= now - this.window && mark.at <= now + 1000);
    for (const mark of inside) {
      const x = this.x(Math.min(mark.at, now));
      if (inside.length <= CROWD) parts.push(svg("line", { class: `mark ${mark.kind}`, x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      parts.push(svg("path", { class: `mark ${mark.kind}`, d: `M${x - 4} ${EDGE.top - 8}h8l-4 7z` }));
    }
    for (const { of, className, area } of this.series) {
      const { line, ground, dots } = this.path(shown, of);
      if (area && ground) parts.push(svg("path", { class: `area ${className}`, d: ground }));
      parts.push(svg("path", { class: `line ${className}`, d: line }));
      parts.push(...dots.map(([x, y]) => svg("circle", { class: `dot-${className}`, cx: x, cy: y, r: 2 })));
    }
    this.pointer = svg("line", { class: "pointer", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
    parts.push(this.pointer);
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts);
    const last = shown.at(-1);
    const figures = this.series.map(({ name, of }) => `${name} ${last && of(last) !== null ? this.format(of(last)) : "none"}`);
    this.svg.setAttribute("aria-label", `${this.figure.querySelector("figcaption").firstChild.textContent}, last second: ${figures.join(", ")}. ${inside.length} marks.`);
    if (this.cursor) this.point(this.x(this.cursor));
  }

  path(shown, of) {
    let line = "";
    let ground = "";
    let before = null;
    let from = null;
    // A point without neighbours is drawn as a dot.
    const dots = [];
    let alone = null;
    const base = HEIGHT - EDGE.bottom;
    const end = () => {
      if (before) ground += `V${base}H${from}Z`;
      if (alone) dots.push(alone);
      before = alone = null;
    };
    for (const second of shown) {
      const value = of(second);
      if (value === null || value === undefined) {
        end();
        continue;
      }
      const [x, y] = [this.x(second.at).toFixed(1), this.y(value).toFixed(1)];
      if (before && second.at - before > GAP) end();
      if (before) {
        line += `L${x} ${y}`;
        ground += `L${x} ${y}`;
        alone = null;
      } else {
        line += `M${x} ${y}`;
        ground += `M${x} ${base}L${x} ${y}`;
        from = x;
        alone = [x, y];
      }
      before = second.at;
    }
    end();
    return { line, ground, dots };
  }

  steps(values) {
    const max = Math.max(this.least, ...values);
    const raw = max / 3;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((step) => step >= raw);
    this.low = 0;
    this.high = Math.ceil(max / step) * step;
    return Array.from({ length: Math.round(this.high / step) + 1 }, (_, i) => i * step);
  }

  decades(values) {
    const [min, max] = values.length ? [Math.min(...values), Math.max(...values)] : [0.01, 10];
    let [from, to] = [Math.floor(Math.log10(min)), Math.ceil(Math.log10(max))];
    if (to <= from) to = from + 1;
    this.low = 10 ** from;
    this.high = 10 ** to;
    return Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i));
  }

  // Shows the numbers of one moment; none hides them.
  point(x) {
    if (!this.pointer) return;
    const inner = this.width - EDGE.left - EDGE.right;
    const at = x === null ? null : this.now - this.window + ((x - EDGE.left) / inner) * this.window;
    const near = at === null ? null : this.seconds.reduce((best, second) => (!best || Math.abs(second.at - at) < Math.abs(best.at - at) ? second : best), null);
    const hit = near && Math.abs(near.at - at) < 5000;
    this.cursor = hit ? near.at : null;
    this.tip.hidden = !hit;
    this.pointer.setAttribute("visibility", hit ? "visible" : "hidden");
    if (!hit) return;
    const place = this.x(near.at);
    this.pointer.setAttribute("x1", place);
    this.pointer.setAttribute("x2", place);
    const around = this.marks.filter((mark) => Math.abs(mark.at - near.at) < (this.window / inner) * 5).slice(0, 4);
    this.tip.replaceChildren(
      el("b", clock(near.at)),
      ...this.series.map(({ name, className, of }) => {
        const value = of(near);
        return el("span", el(`i.${className}`), `${name} ${value === null ? "none" : this.format(value)}`);
      }),
      ...around.map((mark) => el("span", el(`i.${mark.kind}`), mark.text)),
    );
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(this.width - wide, place + (place > this.width / 2 ? -wide - 10 : 10)))}px`;
  }
}
