// The chat: a conversation, shown and kept, and one answer at a time.
import { streamAnswer } from "./answering.js";
import { apiKey, models } from "./client.js";
import { Composer } from "./composer.js";
import { emptyAnswer, keep, kept, messagesOf } from "./conversation.js";
import { element, icon, iconButton, setUpTheme } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { fetchPicture } from "./pictures.js";
import { SettingFault, Settings } from "./settings.js";
import { AnswerView, keyForm, toolView, userView } from "./turn_view.js";

const log = document.getElementById("log");
const welcome = document.getElementById("welcome");
const scroller = document.getElementById("scroller");
const toast = document.getElementById("toast");
const modelName = document.getElementById("model");

let turns = [];
let running = null;

const settings = new Settings(document.getElementById("settings"), { key: loadModels, change: showOffer });
const composer = new Composer(document.getElementById("composer"), {
  send: (text, pictures) => askFor({ role: "user", text, pictures }),
  stop,
  editLast,
  refuse: say,
});

function askFor(turn) {
  turns.push(turn);
  if (!answer()) {
    turns.pop();
    return false;
  }
  return true;
}

/** Begins the answer to the turns so far; false if the settings do not allow it. */
function answer() {
  stop();
  let request;
  try {
    request = { ...settings.parameters(), messages: messagesOf(turns, settings.system) };
  } catch (fault) {
    if (!(fault instanceof SettingFault)) throw fault;
    settings.open(fault.field);
    return false;
  }
  const turn = emptyAnswer();
  const controller = new AbortController();
  turns.push(turn);
  draw();
  const view = log.lastElementChild.view;
  running = controller;
  composer.setRunning(true);
  scrollToEnd();
  let isDue = false;
  const onChange = () => {
    if (isDue || controller.signal.aborted) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      if (running !== controller) return;
      const follows = isAtEnd();
      view.show(true);
      if (follows) scrollToEnd();
    });
  };
  streamAnswer(request, turn, controller.signal, onChange).then(() => {
    if (running === controller) {
      running = null;
      composer.setRunning(false);
    }
    const follows = isAtEnd();
    view.show(false);
    if (follows) scrollToEnd();
    keep(turns);
  });
  return true;
}

function stop() {
  running?.abort();
  running = null;
  composer.setRunning(false);
}

/** Forgets the turns from `place` on. */
function cut(place) {
  stop();
  turns = turns.slice(0, place);
  for (const turn of turns) {
    for (const call of turn.calls ?? []) call.isAnswered = turns.some((one) => one.role === "tool" && one.id === call.id);
  }
}

function edit(place) {
  const { text, pictures } = turns[place];
  cut(place);
  draw();
  keep(turns);
  composer.fill(text, pictures);
  composer.text.focus();
}

function editLast() {
  const place = turns.findLastIndex((turn) => turn.role === "user");
  if (place >= 0) edit(place);
}

function draw() {
  const views = turns.map((turn, place) => {
    if (turn.role === "user") return userView(turn, () => edit(place));
    if (turn.role === "tool") return toolView(turn);
    const view = new AnswerView(turn, {
      again: () => {
        cut(place);
        answer();
      },
      sendResult: (call, text) => sendResult(place, call, text),
      giveKey: (key) => {
        giveKey(key);
        cut(place);
        answer();
      },
    });
    const isLast = place === turns.length - 1;
    view.show(isLast && turn.finish === null && !turn.fault);
    view.element.view = view;
    return view.element;
  });
  log.replaceChildren(...views);
  document.body.classList.toggle("empty", !turns.length);
  welcome.hidden = turns.length > 0;
}

/** Adds a tool's result, and goes on once every call has its own. */
function sendResult(place, call, text) {
  call.isAnswered = true;
  turns = turns.slice(0, place + 1 + turns.slice(place + 1).filter((turn) => turn.role === "tool").length);
  turns.push({ role: "tool", id: call.id, name: call.name, text });
  if (turns[place].calls.every((one) => one.isAnswered)) answer();
  else draw();
}

function giveKey(key) {
  apiKey.set(key);
  settings.fields.key.value = key;
  loadModels();
}

function startAgain() {
  cut(0);
  settings.dropExampleTools();
  draw();
  keep(turns);
  composer.fill("", []);
  composer.text.focus();
}

async function loadModels() {
  const gate = document.getElementById("key-gate");
  try {
    const found = await models();
    settings.showModels(found);
    modelName.textContent = found[0]?.id ?? "no model";
    modelName.title = found[0]?.max_model_len ? `${found[0].max_model_len.toLocaleString("en")} tokens of context` : "";
    modelName.className = "model ready";
    gate.hidden = true;
  } catch (fault) {
    modelName.className = "model lost";
    modelName.textContent = fault.status === 401 ? "API key needed" : "not connected";
    modelName.title = fault.message;
    gate.hidden = fault.status !== 401;
    if (!gate.hidden) gate.replaceChildren(element("strong", {}, "This server asks for an API key"), keyForm(giveKey));
  }
}

function drawExamples() {
  const cards = EXAMPLES.map((example) => {
    const card = element(
      "button",
      { type: "button", class: example.picture ? "example" : "example without-picture" },
      example.picture ? element("img", { src: example.picture, alt: example.alt, width: 96, height: 72 }) : icon(example.icon),
      element("span", {}, example.question),
    );
    card.onclick = () => ask(example);
    return card;
  });
  document.getElementById("examples").replaceChildren(...cards);
}

async function ask(example) {
  const pictures = example.picture ? [await fetchPicture(example.picture)] : [];
  if (example.tools) settings.setTools(example.tools);
  else settings.dropExampleTools();
  askFor({ role: "user", text: example.question, pictures });
}

function isAtEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
}

function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

/** Says beside the composer that tools go with the questions. */
function showOffer() {
  const offer = document.getElementById("offer");
  let names = [];
  try {
    names = settings.tools()?.map((tool) => tool.function.name) ?? [];
  } catch {
    // The drawer tells what is wrong with them.
  }
  offer.hidden = !names.length;
  if (!names.length) return;
  const shown = names.length > 3 ? `${names.length} tools` : names.join(", ");
  const open = element("button", { type: "button", class: "chip", title: "Change the tools", onclick: () => settings.open("tools") }, icon("tool"), shown);
  offer.replaceChildren(open, iconButton("close", "Offer no tools", () => settings.setTools(null)));
}

let toastTimer = 0;

function say(message) {
  toast.textContent = message;
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.hidden = true), 5000);
}

function setUpKeys() {
  addEventListener("keydown", (event) => {
    const writes = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      stop();
    } else if (event.key === "/" && !writes && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      composer.text.focus();
    }
  });
}

document.getElementById("fresh").append(icon("fresh"));
document.getElementById("fresh").onclick = startAgain;
document.getElementById("open-settings").append(icon("settings"));
document.getElementById("open-settings").onclick = () => settings.open();
document.getElementById("close-settings").append(icon("close"));
document.getElementById("close-settings").onclick = () => settings.dialog.close();
setUpTheme(document.getElementById("theme"));
setUpKeys();
drawExamples();
showOffer();
turns = kept();
for (const turn of turns) if (turn.role === "assistant") turn.finish ??= "stopped";
draw();
if (turns.length) scrollToEnd();
loadModels();
if (matchMedia("(hover: hover)").matches) composer.text.focus();
