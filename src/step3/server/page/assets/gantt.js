// The pipeline as it was a moment ago: a row for each lane and FFN instance, on a canvas as wide as there is room.

const ROW = 26;
const BAR = 18;
const AXIS = 24;
// What is drawn last lies on top: a lane's parts of one call are at several FFN instances at once.
const ORDER = ["wire", "waiting", "ffn", "attention"];

export class Gantt {
  /** @param canvas where it is drawn. @param pointed called with the words of the span under the pointer, or "". */
  constructor(canvas, pointed) {
    this.canvas = canvas;
    this.picture = { microseconds: 0, rows: [] };
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    canvas.onpointermove = (event) => pointed(this.words(event.offsetX, event.offsetY));
    canvas.onpointerleave = () => pointed("");
  }

  /** @param picture {microseconds, rows: [{instance, lane, spans: [[start, end, stage, layer, tokens]]}]}. */
  show(picture) {
    this.picture = picture;
    this.draw();
  }

  draw() {
    const { rows, microseconds } = this.picture;
    const width = Math.floor(this.canvas.parentElement.clientWidth - padding(this.canvas.parentElement));
    if (width <= 0) return;
    const height = rows.length * ROW + AXIS;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const look = getComputedStyle(this.canvas);
    const colour = (name) => resolved(this.canvas, look.getPropertyValue(`--${name}`));
    pen.font = `12px ${look.fontFamily}`;
    pen.textBaseline = "middle";
    this.left = Math.min(110, Math.ceil(Math.max(0, ...rows.map((row) => pen.measureText(label(row)).width)) + 12));
    this.scale = (width - this.left - 1) / (microseconds || 1);
    const colours = Object.fromEntries(ORDER.map((stage) => [stage, colour(stage)]));
    const quiet = colour("quiet");
    rows.forEach((row, number) => {
      const top = number * ROW;
      pen.fillStyle = quiet;
      pen.fillText(label(row), 0, top + ROW / 2);
      pen.fillStyle = colour("sunken");
      pen.fillRect(this.left, top + (ROW - BAR) / 2, width - this.left, BAR);
      for (const stage of ORDER) {
        pen.fillStyle = colours[stage];
        for (const [start, end, of] of row.spans) {
          if (of !== stage) continue;
          // A hair of ground between two spans, unless they are but hairs themselves.
          const wide = Math.max((end - start) * this.scale, 0.5);
          pen.fillRect(this.left + start * this.scale, top + (ROW - BAR) / 2, wide > 3 ? wide - 0.7 : wide, BAR);
        }
      }
    });
    this.drawAxis(pen, rows.length * ROW, width, quiet, colour("line"));
    this.canvas.setAttribute("aria-label", `Lanes and FFN instances over ${(microseconds / 1e3).toFixed(0)} ms`);
  }

  drawAxis(pen, top, width, quiet, line) {
    const { microseconds } = this.picture;
    if (!microseconds) return;
    const step = niceStep((microseconds / (width - this.left)) * 90);
    pen.textAlign = "center";
    for (let at = 0; at <= microseconds; at += step) {
      const x = this.left + at * this.scale;
      pen.fillStyle = line;
      pen.fillRect(x, 0, 1, top + 4);
      pen.fillStyle = quiet;
      const text = `${Number((at / 1e3).toPrecision(3))}${at ? "" : " ms"}`;
      const half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.min(Math.max(x, this.left + half), width - half), top + AXIS / 2 + 3);
    }
    pen.textAlign = "start";
  }

  words(x, y) {
    const row = this.picture.rows[Math.floor(y / ROW)];
    if (!row || !this.scale) return "";
    const at = (x - this.left) / this.scale;
    const under = row.spans.filter(([start, end]) => start <= at && at < end);
    under.sort((one, other) => ORDER.indexOf(other[2]) - ORDER.indexOf(one[2]));
    if (!under.length) return `${label(row)}: nothing`;
    const [start, end, stage, layer, tokens] = under[0];
    const where = layer < 0 ? "between steps" : `layer ${layer}`;
    return `${label(row)}: ${stage === "ffn" ? "FFN" : stage}, ${where}, ${tokens} tokens, ${((end - start) / 1e3).toFixed(2)} ms`;
  }
}

function label(row) {
  const name = row.instance.replace("attention ", "A").replace("ffn ", "F");
  return row.lane === null ? name : `${name} lane ${row.lane}`;
}

function padding(box) {
  const look = getComputedStyle(box);
  return parseFloat(look.paddingLeft) + parseFloat(look.paddingRight);
}

// A canvas does not know light-dark(): the browser works it out as the colour of an element.
function resolved(canvas, value) {
  canvas.style.color = value;
  const found = getComputedStyle(canvas).color;
  canvas.style.color = "";
  return found;
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least);
}
