// Lines on logarithmic axes, drawn as SVG at the width that there is.
import { element, svg } from "./dom.js";

const HEIGHT = 290;
const MARGIN = { left: 50, right: 14, top: 10, bottom: 40 };

export class Chart {
  /**
   * @param place the element to draw into.
   * @param options {xLabel, xTick(x) -> text, isReversed: large x on the left}.
   */
  constructor(place, options) {
    this.place = place;
    this.options = options;
    this.legend = element("div", { class: "legend" });
    this.data = { curves: [], xs: [], now: null };
    this.hovered = null;
    place.after(this.legend);
    new ResizeObserver(() => this.draw()).observe(place);
  }

  /** @param data {curves: [{name, hue, points: [[x, y]]}], xs: ticks, now: x of the present choice}. */
  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const width = Math.floor(this.place.clientWidth);
    if (!width) return;
    const { xs } = this.data;
    const curves = this.data.curves.filter((curve) => curve.points.length);
    const ys = curves.flatMap((curve) => curve.points.map(([, y]) => y)).filter((y) => y > 0);
    this.drawLegend(curves);
    if (!ys.length || xs.length < 2) {
      this.place.replaceChildren(element("p", { class: "facts" }, this.data.isLoading ? "Searching …" : "Nothing here meets the target."));
      return;
    }
    const yTicks = ticks(Math.min(...ys), Math.max(...ys));
    const { isReversed } = this.options;
    const x = scale(xs[0], xs[xs.length - 1], isReversed ? width - MARGIN.right : MARGIN.left, isReversed ? MARGIN.left : width - MARGIN.right);
    const y = scale(yTicks[0], yTicks[yTicks.length - 1], HEIGHT - MARGIN.bottom, MARGIN.top);
    const canvas = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": this.description(curves) });
    this.drawAxes(canvas, width, x, y, yTicks);
    const { now } = this.data;
    const marked = this.hovered ?? now;
    if (marked >= xs[0] && marked <= xs[xs.length - 1]) {
      canvas.append(svg("line", { class: "now", x1: x(marked), x2: x(marked), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    }
    for (const curve of [...curves].reverse()) {
      const path = curve.points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
      canvas.append(svg("path", { class: `line hue-${curve.hue} ${curve.hue ? "" : "first"}`, d: path }));
      for (const [px, py] of curve.points) {
        canvas.append(svg("circle", { class: `dot hue-${curve.hue}`, cx: x(px), cy: y(py), r: px === marked ? 5.5 : 3.5 }));
      }
    }
    canvas.onpointermove = (event) => this.hover(x.inverse(event.offsetX));
    canvas.onpointerleave = () => this.hover(null);
    this.place.replaceChildren(canvas);
  }

  drawAxes(canvas, width, x, y, yTicks) {
    for (const tick of yTicks) {
      canvas.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
      canvas.append(svg("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, dollars(tick)));
    }
    let last = null;
    for (const tick of this.data.xs) {
      // Labels that would run into each other are left out.
      if (last !== null && Math.abs(x(tick) - last) < 32) continue;
      last = x(tick);
      canvas.append(svg("text", { x: x(tick), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle" }, this.options.xTick(tick)));
    }
    const middle = (MARGIN.left + width - MARGIN.right) / 2;
    canvas.append(svg("text", { x: middle, y: HEIGHT - 4, "text-anchor": "middle" }, this.options.xLabel));
  }

  hover(wanted) {
    const { xs } = this.data;
    const distance = (x) => Math.abs(Math.log(x / wanted));
    const nearest = wanted === null ? null : xs.reduce((best, x) => (distance(x) < distance(best) ? x : best), xs[0]);
    if (nearest === this.hovered) return;
    this.hovered = nearest;
    this.draw();
  }

  drawLegend(curves) {
    const at = this.hovered ?? this.data.now;
    this.legend.replaceChildren(
      ...curves.map((curve) => {
        const point = curve.points.find(([x]) => x === at);
        const value = point ? element("b", {}, ` ${dollars(point[1], 3)}`) : null;
        return element("span", { class: `hue-${curve.hue}` }, element("span", {}, curve.name), value);
      }),
    );
  }

  description(curves) {
    const told = curves.map((curve) => {
      const [first, last] = [curve.points[0], curve.points[curve.points.length - 1]];
      return `${curve.name}: ${dollars(first[1], 3)} at ${this.options.xTick(first[0])}, ${dollars(last[1], 3)} at ${this.options.xTick(last[0])}`;
    });
    return `USD for a million tokens. ${told.join("; ")}.`;
  }
}

/** A price, short. */
export function dollars(value, digits = 2) {
  if (value >= 100) return `$${Math.round(value).toLocaleString("en")}`;
  return `$${Number(value.toPrecision(digits))}`;
}

function scale(low, high, from, to) {
  const span = Math.log(high / low) || 1;
  const place = (value) => from + ((to - from) * Math.log(value / low)) / span;
  place.inverse = (at) => low * Math.exp((span * (at - from)) / (to - from));
  return place;
}

/** 1, 2, 5 and their tens, one beyond either end. */
function ticks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)) + 1; power += 1) {
    for (const step of [1, 2, 5]) found.push(Number((step * 10 ** power).toPrecision(1)));
  }
  const from = found.findLastIndex((tick) => tick <= low);
  const to = found.findIndex((tick) => tick >= high);
  const chosen = found.slice(from, Math.max(to, from + 1) + 1);
  return chosen.length > 9 ? chosen.filter((tick) => `${tick.toExponential()}`.startsWith("1")) : chosen;
}
