// The planner's page: controls, the search behind them, and what came of it.
import { Chart } from "./chart.js";
import { ServerFault, apiKey, ask } from "./client.js";
import { curvesOf, deployments, priced } from "./deployments.js";
import { element, setUpTheme } from "./dom.js";
import { showBest, showChoices, showCommands } from "./plan_view.js";
import { keyForm } from "./turn_view.js";

const TARGETS = [5, 7, 10, 15, 20, 25, 33, 50, 75, 100, 150, 200];
const CURVE_TARGETS = [10, 15, 20, 25, 33, 50, 75, 100];
const CURVE_CONTEXTS = [2, 4, 8, 16, 32, 64, 128, 256].map((kilo) => kilo * 1024);
const LEAST_CONTEXT = 1024;
const DEFAULTS = { model: "Step-3", context: 8192, target: 50, cards: ["H800", "H20"] };
const MOST_CARDS = 4;

const at = (id) => document.getElementById(id);
const contextChart = new Chart(at("context-chart"), { xLabel: "context, tokens", xTick: length });
const speedChart = new Chart(at("speed-chart"), { xLabel: "time per token, ms: faster to the right", xTick: (ms) => String(ms), isReversed: true });

let catalogue = null;
let state = null;
let search = null;
let found = { here: null, contexts: new Map(), targets: new Map() };

/** `8192` as `8K`. */
function length(tokens) {
  if (tokens >= 1 << 20) return `${Number((tokens / (1 << 20)).toPrecision(3))}M`;
  return `${Number((tokens / 1024).toPrecision(3))}K`;
}

async function start() {
  setUpTheme(at("theme"));
  at("reset").onclick = () => {
    state = initialState(new URLSearchParams());
    drawControls();
    refresh();
  };
  at("controls").onsubmit = (event) => event.preventDefault();
  await load();
}

async function load() {
  try {
    catalogue = await (await ask("planner/catalogue")).json();
  } catch (fault) {
    showFault(fault);
    return;
  }
  at("key-gate").hidden = true;
  state = initialState(new URLSearchParams(location.hash.slice(1)));
  at("model").replaceChildren(...catalogue.models.map((model) => new Option(model.name, model.name)));
  at("model").onchange = () => change({ model: at("model").value });
  at("context").oninput = () => change({ context: contexts()[at("context").value] });
  at("target").max = TARGETS.length - 1;
  at("target").oninput = () => change({ target: TARGETS[at("target").value] });
  drawControls();
  refresh();
}

/** The state that an address tells of; what is wrong there is as by default. */
function initialState(told) {
  const known = catalogue.cards.map((card) => card.name);
  const cards = (told.get("cards") ?? "").split(",").filter((name) => known.includes(name)).slice(0, MOST_CARDS);
  const prices = Object.fromEntries(catalogue.cards.map((card) => [card.name, card.usd_per_hour]));
  for (const name of known) {
    const price = Number(told.get(`price.${name}`) ?? NaN);
    if (price >= 0 && price <= 1000) prices[name] = price;
  }
  const model = catalogue.models.some((one) => one.name === told.get("model")) ? told.get("model") : DEFAULTS.model;
  const wanted = { model, context: Number(told.get("context")) || DEFAULTS.context, target: Number(told.get("tpot")) || DEFAULTS.target };
  return {
    model,
    context: nearest(contexts(model), wanted.context),
    target: nearest(TARGETS, wanted.target),
    cards: cards.length ? cards : [...DEFAULTS.cards],
    prices,
  };
}

function nearest(values, wanted) {
  return values.reduce((best, value) => (Math.abs(Math.log(value / wanted)) < Math.abs(Math.log(best / wanted)) ? value : best));
}

/** Half octaves up to the model's longest context. */
function contexts(name = state.model) {
  const longest = catalogue.models.find((model) => model.name === name).max_context ?? 1 << 20;
  const values = [];
  for (let half = 0; LEAST_CONTEXT * 2 ** (half / 2) <= longest; half += 1) values.push(Math.round(LEAST_CONTEXT * 2 ** (half / 2)));
  return values;
}

function change(changes) {
  Object.assign(state, changes);
  state.context = nearest(contexts(), state.context);
  drawControls();
  refresh();
}

function drawControls() {
  const model = catalogue.models.find((one) => one.name === state.model);
  const billions = (count) => `${Math.round(count / 1e9).toLocaleString("en")} B`;
  at("model").value = state.model;
  at("model-facts").textContent = `${billions(model.parameters)} parameters, ${billions(model.active_parameters)} active, up to ${length(model.max_context ?? 1 << 20)} tokens`;
  const values = contexts();
  at("context").max = values.length - 1;
  at("context").value = values.indexOf(state.context);
  at("context").setAttribute("aria-valuetext", `${state.context} tokens`);
  at("context-shown").value = `${length(state.context)} tokens`;
  at("target").value = TARGETS.indexOf(state.target);
  at("target").setAttribute("aria-valuetext", `${state.target} milliseconds`);
  at("target-shown").value = `${state.target} ms`;
  drawCards();
  drawPrices();
}

function drawCards() {
  const place = at("cards");
  if (!place.childElementCount) {
    for (const card of catalogue.cards) {
      const box = element("input", { type: "checkbox", value: card.name });
      box.onchange = () => change({ cards: [...place.querySelectorAll("input:checked")].map((one) => one.value) });
      const tera = (value) => Number((value / 1e12).toPrecision(3)).toLocaleString("en");
      const title = `${tera(card.peak_flops)} TFLOP/s, ${tera(card.memory_bandwidth)} TB/s, ${Math.round(card.memory_bytes / 2 ** 30)} GiB`;
      place.append(element("label", { title }, box, element("span", {}, card.name)));
    }
  }
  for (const box of place.querySelectorAll("input")) {
    box.checked = state.cards.includes(box.value);
    // One stays, and no more than the search can do at once.
    box.disabled = box.checked ? state.cards.length === 1 : state.cards.length >= MOST_CARDS;
  }
}

function drawPrices() {
  const place = at("prices");
  const shown = [...place.children].map((row) => row.dataset.card).join();
  if (shown !== state.cards.join()) place.replaceChildren(...state.cards.map(priceRow));
  for (const row of place.children) {
    const price = state.prices[row.dataset.card];
    for (const input of row.querySelectorAll("input")) if (document.activeElement !== input) input.value = price;
  }
  at("assumed").hidden = !state.cards.some((name) => isAssumed(name));
}

function isAssumed(name) {
  const card = catalogue.cards.find((one) => one.name === name);
  return card.is_assumed && state.prices[name] === card.usd_per_hour;
}

function priceRow(name) {
  const usual = catalogue.cards.find((card) => card.name === name).usd_per_hour;
  const set = (event) => {
    const price = Number(event.target.value);
    if (event.target.value === "" || !(price >= 0 && price <= 1000)) return;
    state.prices[name] = price;
    drawPrices();
    show();
    remember();
  };
  const max = Number((usual * 3).toPrecision(2));
  const label = `Price of ${name}, USD an hour`;
  const row = element(
    "div",
    { class: "price" },
    element("span", {}, name, isAssumed(name) ? "*" : ""),
    element("input", { type: "range", min: 0.05, max, step: 0.01, "aria-label": label, oninput: set }),
    element("input", { type: "number", min: 0, max: 1000, step: 0.01, "aria-label": label, oninput: set }),
  );
  row.dataset.card = name;
  return row;
}

function remember() {
  const told = new URLSearchParams({ model: state.model, context: state.context, tpot: state.target, cards: state.cards.join() });
  for (const card of catalogue.cards) {
    if (state.prices[card.name] !== card.usd_per_hour) told.set(`price.${card.name}`, state.prices[card.name]);
  }
  history.replaceState(null, "", `#${told}`);
}

let pause = 0;

/** Searches for the state as it is now, once it has stopped moving. */
function refresh() {
  remember();
  search?.abort();
  search = new AbortController();
  at("best").classList.add("stale");
  clearTimeout(pause);
  const { signal } = search;
  pause = setTimeout(() => run(signal).catch((fault) => signal.aborted || showFault(fault)), 120);
}

async function run(signal) {
  const { model, cards, context, target } = structuredClone(state);
  const get = (tokens, ms, details) => deployments({ model, context: tokens, tpot_ms: ms, cards, details }, signal);
  const here = await get(context, target, true);
  if (signal.aborted) return;
  found = { here, contexts: new Map(), targets: new Map() };
  found.contexts.set(context, here.points);
  found.targets.set(target, here.points);
  at("fault").hidden = true;
  show();
  const longest = contexts(model).at(-1);
  for (const tokens of CURVE_CONTEXTS.filter((one) => one <= longest)) {
    found.contexts.set(tokens, (await get(tokens, target, false)).points);
    if (signal.aborted) return;
    show();
  }
  for (const ms of CURVE_TARGETS) {
    found.targets.set(ms, (await get(context, ms, false)).points);
    if (signal.aborted) return;
    show();
  }
  found.isComplete = true;
  show();
}

function show() {
  if (!found.here) return;
  const sorted = priced(found.here.points, state.prices);
  at("best").classList.remove("stale");
  showBest(at("best"), found.here, sorted, state);
  showChoices(at("choices"), found.here, sorted);
  showCommands(at("commands"), found.here, sorted, state, catalogue);
  showCurves(contextChart, found.contexts, state.context);
  showCurves(speedChart, found.targets, state.target);
}

function showCurves(chart, byX, now) {
  const xs = [...byX.keys()].sort((one, other) => one - other);
  const rankings = xs.map((x) => [x, priced(byX.get(x), state.prices)]);
  chart.show({ curves: curvesOf(rankings, state.cards), xs, now, isLoading: !found.isComplete });
}

function showFault(fault) {
  if (!(fault instanceof ServerFault)) throw fault;
  const gate = at("key-gate");
  gate.hidden = fault.status !== 401;
  at("fault").hidden = fault.status === 401;
  if (fault.status !== 401) at("fault").replaceChildren(element("strong", {}, "The planner cannot answer"), fault.message);
  else {
    const use = (key) => {
      apiKey.set(key);
      load();
    };
    gate.replaceChildren(element("strong", {}, "This server asks for an API key"), keyForm(use));
  }
}

start();
