// What a search came to, in words, numbers and bars.
import { dollars } from "./chart.js";
import { bestOfEach, verdict } from "./deployments.js";
import { copyButton, element } from "./dom.js";

/** The cheapest deployment; or why there is none. */
export function showBest(place, found, sorted, state) {
  if (!sorted.length) {
    showNone(place, found);
    return;
  }
  const [best] = sorted;
  const outcome = found.outcomes[best.place];
  const advice = verdict(sorted);
  place.replaceChildren(
    element(
      "div",
      { class: "headline" },
      element("span", { class: "cost" }, dollars(best.cost, 3)),
      element("span", { class: "unit" }, "for a million tokens"),
    ),
    element("p", { class: "name" }, nameOf(outcome)),
    element("p", { class: advice.isSplit ? "verdict split" : "verdict" }, advice.text),
    numbers(outcome, state),
    bars(outcome, state),
  );
}

function showNone(place, found) {
  place.replaceChildren(
    element("h2", {}, "Nothing meets this"),
    element("p", { class: "facts" }, `None of ${found.tried.toLocaleString("en")} deployments does. Closest, by what they lack:`),
    element(
      "ul",
      { class: "obstacles" },
      ...found.obstacles.map((one) => element("li", {}, `${one.lack}${one.card ? ` of ${one.card}` : ""} (${one.count} tried): ${one.reason}`)),
    ),
  );
}

/** `4A1F: 32 H20 for attention, 8 H800 for the FFN`. */
function nameOf(outcome) {
  const { attention, ffn } = outcome;
  const all = (side) => side.instances * side.cards_each;
  if (!all(ffn)) return `${outcome.topology}: ${outcome.cards} ${attention.hardware} without AFD`;
  return `${outcome.topology}: ${all(attention)} ${attention.hardware} for attention, ${all(ffn)} ${ffn.hardware} for the FFN`;
}

function numbers(outcome, state) {
  const price = (side) => state.prices[side.hardware] * side.instances * side.cards_each;
  const rows = {
    "Time per token": `${outcome.tpot_ms.toFixed(1)} ms`,
    "Tokens/s and card": Math.round(outcome.tgs).toLocaleString("en"),
    "Tokens/s in all": Math.round(outcome.tgs * outcome.cards).toLocaleString("en"),
    "Sequences together": outcome.batch.toLocaleString("en"),
    "Micro-batches in flight": String(outcome.micro_batches),
    "Cards, price": `${outcome.cards}, ${dollars(price(outcome.attention) + price(outcome.ffn), 3)}/h`,
    "Bound by": outcome.bound_by,
  };
  return element("dl", { class: "numbers" }, ...Object.entries(rows).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function bars(outcome, state) {
  const budget = state.target / outcome.micro_batches;
  const memory = outcome.memory_bytes;
  const rows = outcome.stages.map((stage) =>
    bar(`${stage.name}, of its ${budget.toFixed(1)} ms`, `${stage.ms_per_step.toFixed(1)} ms`, 1 - stage.slack),
  );
  rows.push(bar(`memory of ${outcome.attention.hardware}${outcome.ffn.instances ? ", attention" : ""}`, gib(memory.attention_weights + memory.caches, memory.attention_room), (memory.attention_weights + memory.caches) / memory.attention_room));
  if (outcome.ffn.instances) rows.push(bar(`memory of ${outcome.ffn.hardware}, FFN`, gib(memory.ffn_weights, memory.ffn_room), memory.ffn_weights / memory.ffn_room));
  return element("div", { class: "bars" }, ...rows);
}

function gib(used, room) {
  return `${Math.round(used / 2 ** 30)} of ${Math.round(room / 2 ** 30)} GiB`;
}

function bar(name, value, share) {
  return element("div", { class: "bar-row" }, element("span", {}, name, element("b", {}, value)), element("meter", { min: 0, max: 1, value: Math.min(1, Math.max(0, share)), "aria-label": `${name}: ${value}` }));
}

/** The cheapest deployment of each choice of cards. */
export function showChoices(place, found, sorted) {
  place.hidden = !sorted.length;
  const rows = bestOfEach(sorted).map((one) => {
    const outcome = found.outcomes[one.place];
    const cells = [
      [one.isSplit ? `${one.attention} + ${one.ffn}` : `${one.attention} alone`, ""],
      [outcome.topology, ""],
      [String(one.cards), "number"],
      [outcome.batch.toLocaleString("en"), "number"],
      [Math.round(outcome.tgs).toLocaleString("en"), "number"],
      [dollars(one.cost, 3), "number"],
      [outcome.bound_by, "why"],
    ];
    return element("tr", {}, ...cells.map(([text, kind]) => element("td", { class: kind }, text)));
  });
  const heads = [["Attention + FFN", ""], ["Topology", ""], ["Cards", "number"], ["Sequences", "number"], ["Tokens/s and card", "number"], ["USD for 1M", "number"], ["Bound by", ""]];
  place.replaceChildren(
    element("h2", {}, "Each choice of cards at its best"),
    element(
      "div",
      { class: "table-box", tabIndex: 0, role: "region", "aria-label": "Choices of cards" },
      element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(([text, kind]) => element("th", { class: kind, scope: "col" }, text)))), element("tbody", {}, ...rows)),
    ),
  );
}

/** The same question for the terminal, and the command that starts the best. */
export function showCommands(place, found, sorted, state, catalogue) {
  const own = catalogue.cards.filter((card) => state.cards.includes(card.name) && state.prices[card.name] !== card.usd_per_hour);
  const prices = own.map((card) => ` --price ${card.name}=${state.prices[card.name]}`).join("");
  const model = /\s/.test(state.model) ? `"${state.model}"` : state.model;
  const plan = `step3 plan ${model} --context ${state.context} --tpot ${state.target} --cards ${state.cards.join()}${prices}`;
  const cards = [element("h2", {}, "In a terminal"), element("p", { class: "facts" }, "Every ratio, sensitivities and plots:"), command(plan)];
  if (sorted.length) cards.push(element("p", { class: "facts spaced" }, "Starts the best deployment:"), command(found.outcomes[sorted[0].place].launch));
  place.replaceChildren(...cards);
}

function command(text) {
  return element("div", { class: "command" }, element("code", { tabIndex: 0 }, text), copyButton("Copy the command", () => text));
}
