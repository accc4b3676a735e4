// How turns look. A view shows its turn again whenever that has changed.
import { copyButton, element, icon, iconButton } from "./dom.js";
import { showMarkdown } from "./markdown.js";

/** A question: pictures and text, with a way to edit it. */
export function userView(turn, onEdit) {
  return element(
    "article",
    { class: "turn user", "aria-label": "You" },
    turn.pictures.length ? element("div", { class: "pictures" }, ...turn.pictures.map(picture)) : null,
    turn.text ? element("div", { class: "bubble" }, turn.text) : null,
    element(
      "div",
      { class: "actions" },
      turn.text ? copyButton("Copy the question", () => turn.text) : null,
      iconButton("edit", "Edit and ask again", onEdit),
    ),
  );
}

function picture(url, place, all) {
  const number = all.length > 1 ? ` ${place + 1}` : "";
  const image = element("img", { src: url, alt: `Picture${number}` });
  const open = element("button", { type: "button", class: "picture", "aria-label": `Show picture${number} large` }, image);
  open.onclick = () => {
    const large = element("dialog", { class: "lightbox", "aria-label": "Picture" }, element("img", { src: url, alt: "" }));
    large.onclick = () => large.close();
    large.onclose = () => large.remove();
    document.body.append(large);
    large.showModal();
  };
  return open;
}

/** A tool's result, as the user gave it. */
export function toolView(turn) {
  const name = element("span", { class: "call-name" }, turn.name);
  return element(
    "article",
    { class: "turn tool", "aria-label": "Result of a tool" },
    element("div", { class: "call" }, element("div", { class: "call-head" }, icon("tool"), "Result of ", name), element("pre", {}, turn.text)),
  );
}

/** An answer: thinking folded, tool calls, text, and what it took. */
export class AnswerView {
  /**
   * @param turn the answer, which goes on changing.
   * @param on {again, sendResult(call, text), giveKey(key)}.
   */
  constructor(turn, on) {
    this.turn = turn;
    this.on = on;
    this.summary = element("span", { class: "thinking-summary" });
    this.thought = element("div", { class: "thought" });
    this.thinking = element("details", { class: "thinking", hidden: true }, element("summary", {}, icon("fold"), this.summary), this.thought);
    this.waiting = element("div", { class: "waiting", "aria-label": "Waiting for the answer" }, element("i"), element("i"), element("i"));
    this.text = element("div", { class: "prose" });
    this.calls = element("div", { class: "calls" });
    this.note = element("div", { class: "note", hidden: true });
    this.stats = element("div", { class: "stats" });
    this.again = iconButton("again", "Answer again", () => on.again());
    this.copy = copyButton("Copy the answer", () => turn.content);
    this.footer = element("div", { class: "footer", hidden: true }, this.copy, this.again, this.stats);
    this.element = element(
      "article",
      { class: "turn assistant", "aria-label": "Step3" },
      this.thinking,
      this.waiting,
      this.text,
      this.calls,
      this.note,
      this.footer,
    );
  }

  /** Shows the turn as it is; `isRunning` while more may come. */
  show(isRunning) {
    const { turn } = this;
    const hasBegun = Boolean(turn.content || turn.calls.length);
    this.element.setAttribute("aria-busy", String(isRunning));
    this.waiting.hidden = !isRunning || hasBegun || Boolean(turn.reasoning);
    this.thinking.hidden = !turn.reasoning;
    this.thinking.classList.toggle("live", isRunning && !hasBegun);
    this.thought.textContent = turn.reasoning.trim();
    this.summary.textContent = thinkingSummary(turn, isRunning && !hasBegun);
    showMarkdown(this.text, turn.content);
    this.text.classList.toggle("live", isRunning && Boolean(turn.content));
    this.showCalls(isRunning);
    if (!isRunning) this.showEnd();
  }

  showCalls(isRunning) {
    // While text streams in, calls only grow; a form that somebody writes into is not built again.
    const wanted = JSON.stringify([this.turn.calls, isRunning]);
    if (wanted === this.shownCalls) return;
    this.shownCalls = wanted;
    this.calls.replaceChildren(...this.turn.calls.map((call) => callCard(call, isRunning, this.on)));
  }

  showEnd() {
    const { turn } = this;
    this.footer.hidden = false;
    this.copy.hidden = !turn.content;
    this.stats.replaceChildren(...statistics(turn.stats));
    const note = turn.fault ? null : endNote(turn);
    this.note.hidden = !turn.fault && !note;
    this.note.className = turn.fault ? "note fault" : "note";
    if (turn.fault) {
      this.note.setAttribute("role", "alert");
      this.note.replaceChildren(...faultContent(turn.fault, this.on));
    } else if (note) this.note.textContent = note;
  }
}

function thinkingSummary(turn, isThinking) {
  if (isThinking) return "Thinking …";
  const seconds = turn.stats?.thinkingSeconds;
  return seconds === undefined || seconds === null ? "Thought" : `Thought for ${seconds.toFixed(1)} s`;
}

function endNote(turn) {
  if (turn.finish === "length") return "Cut off at the longest answer allowed. Raise “Longest answer” in the settings, or ask it to go on.";
  if (turn.finish === "stopped") return "Stopped.";
  if (!turn.content && !turn.calls.length) return "The answer is empty.";
  return null;
}

function statistics(stats) {
  if (!stats) return [];
  const part = (value, title) => element("span", { title }, value);
  const shown = [];
  if (stats.ttft !== null) shown.push(part(`${milliseconds(stats.ttft)} to first token`, "TTFT: from the question to the first token, as seen here"));
  if (stats.tokensPerSecond) shown.push(part(`${rate(stats.tokensPerSecond)} tokens/s`, "After the first token, as seen here"));
  if (stats.tokens) shown.push(part(`${stats.isEstimate ? "about " : ""}${stats.tokens.toLocaleString("en")} tokens`, "Of the answer, thinking included"));
  if (stats.promptTokens) {
    const cached = stats.cachedTokens ? `, ${stats.cachedTokens.toLocaleString("en")} cached` : "";
    shown.push(part(`prompt ${stats.promptTokens.toLocaleString("en")}${cached}`, "Tokens of the conversation so far"));
  }
  return shown;
}

function milliseconds(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1e3)} ms` : `${seconds.toFixed(1)} s`;
}

function rate(value) {
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function faultContent(fault, on) {
  const shown = [element("strong", {}, faultTitle(fault.status)), element("p", {}, fault.message)];
  if (fault.status === 401) shown.push(keyForm(on.giveKey));
  else if (fault.status !== 400) shown.push(element("button", { type: "button", class: "button", onclick: () => on.again() }, "Try again"));
  return shown;
}

function faultTitle(status) {
  if (status === 401) return "This server asks for an API key";
  if (status === 429) return "The server is busy";
  if (status === 400 || status === 413) return "The server refused the request";
  if (status === 503) return "The model is not ready";
  return "The answer failed";
}

/** A field for an API key. */
export function keyForm(giveKey) {
  const field = element("input", { type: "password", autocomplete: "off", placeholder: "API key", "aria-label": "API key", required: true });
  const form = element("form", { class: "key-form" }, field, element("button", { class: "button primary" }, "Use it"));
  form.onsubmit = (event) => {
    event.preventDefault();
    giveKey(field.value.trim());
  };
  return form;
}

function callCard(call, isRunning, on) {
  const head = element("div", { class: "call-head" }, icon("tool"), "Calls ", element("span", { class: "call-name" }, call.name || "…"));
  const card = element("div", { class: "call" }, head, argumentList(call.arguments, isRunning));
  if (isRunning || call.isAnswered) return card;
  const field = element("input", { placeholder: "What the tool would return", "aria-label": `Result of ${call.name}`, required: true });
  const form = element("form", { class: "result-form" }, field, element("button", { class: "button" }, "Send result"));
  form.onsubmit = (event) => {
    event.preventDefault();
    on.sendResult(call, field.value);
  };
  card.append(form);
  return card;
}

function argumentList(text, isRunning) {
  let values = null;
  try {
    values = JSON.parse(text || "{}");
  } catch {
    if (!isRunning) return element("pre", {}, text);
  }
  if (values === null || typeof values !== "object") return element("pre", {}, text);
  const rows = Object.entries(values).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))),
  );
  return rows.length ? element("dl", {}, ...rows) : element("p", { class: "quiet" }, "without arguments");
}
