// The pipeline's page: looks at the deployment again and again while somebody looks at the page.
import { apiKey, ask } from "./client.js";
import { element, setUpTheme } from "./dom.js";
import { Gantt } from "./gantt.js";
import { keyForm } from "./turn_view.js";

const REST = 600;
const LONGEST_REST = 15_000;
const STAGES = ["attention", "wire", "waiting", "ffn"];

const at = (id) => document.getElementById(id);
const HINT = "Point at a span to see its layer and how long it took.";
const gantt = new Gantt(at("gantt"), (words) => (at("pointed").textContent = words || HINT));
let isPaused = false;
let wake = () => {};

async function start() {
  setUpTheme(at("theme"));
  at("theme").addEventListener("click", () => gantt.draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => gantt.draw());
  at("pointed").textContent = HINT;
  at("pause").onclick = () => {
    isPaused = !isPaused;
    at("pause").setAttribute("aria-pressed", String(isPaused));
    at("pause").textContent = isPaused ? "Go on" : "Pause";
    wake();
  };
  document.addEventListener("visibilitychange", () => wake());
  let rest = REST;
  while (true) {
    if (isPaused || document.hidden) {
      await new Promise((resolve) => (wake = resolve));
      continue;
    }
    try {
      const found = await (await ask("cluster/live?seconds=1")).json();
      if (!isPaused) show(found);
      rest = REST;
    } catch (fault) {
      if (!showFault(fault)) return;
      rest = Math.min(2 * rest, LONGEST_REST);
    }
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, rest);
    });
  }
}

function show(found) {
  at("key-gate").hidden = at("fault").hidden = true;
  at("shown").hidden = false;
  at("topology").textContent = found.topology;
  at("limit").textContent = sentence(found.limit);
  at("limit").classList.toggle("straggles", found.stragglers.length > 0);
  gantt.show(found.picture);
  at("moment").hidden = !found.picture.rows.length;
  at("attention").replaceChildren(...found.attention.map((one) => attentionCard(one, found.stragglers)));
  at("ffn").replaceChildren(...found.ffn.map((one) => ffnCard(one, found.stragglers)));
  at("ffn-panel").hidden = !found.ffn.length;
}

function attentionCard(one, stragglers) {
  const facts = `${one.running} running, ${one.waiting} waiting, ${percent(one.kv_cache_usage)} of the cache`;
  const lanes = one.lanes.map((lane, number) => {
    const window = one.window_seconds;
    const shares = STAGES.map((stage) => [stage, window ? lane[stage] / window : 0]);
    const rate = window ? lane.steps / window : 0;
    const batch = lane.steps ? lane.tokens / lane.steps : 0;
    const words = lane.steps ? `${rate.toFixed(rate < 10 ? 1 : 0)} steps/s of ${batch.toFixed(batch < 10 ? 1 : 0)} tokens` : "nothing to do";
    return element("div", { class: "lane" }, element("span", {}, `lane ${number}`), sharesBar(shares), element("p", { class: "facts" }, words));
  });
  return card(one, `attention ${one.instance}`, facts, stragglers, lanes);
}

function ffnCard(one, stragglers) {
  const window = one.window_seconds;
  const busy = window ? Math.min(one.seconds / window, 1) : 0;
  const merged = one.products ? one.calls / one.products : 0;
  const words = one.products ? `${(one.tokens / window).toFixed(0)} rows/s, ${merged.toFixed(1)} calls a product` : "nothing to do";
  const bar = element("div", { class: "lane" }, element("span", {}, percent(busy)), sharesBar([["ffn", busy]]), element("p", { class: "facts" }, words));
  return card(one, `FFN ${one.instance}`, `shard ${one.shard}`, stragglers, [bar]);
}

function card(one, name, facts, stragglers, children) {
  const notes = [];
  if (stragglers.includes(name)) notes.push(element("span", { class: "straggler" }, "straggles"));
  if (one.state !== "ready") notes.push(element("span", { class: "straggler" }, one.state));
  const title = element("h3", {}, sentence(name), ...notes, element("small", {}, facts));
  return element("section", { class: "instance", "aria-label": name }, title, ...children);
}

/** A bar of shares of the time; what is missing to the whole is idle. */
function sharesBar(shares) {
  const bar = element("div", { class: "shares", role: "img" });
  const words = [];
  for (const [stage, share] of shares) {
    const part = element("div", { class: `share ${stage}` });
    part.style.width = `${Math.min(share, 1) * 100}%`;
    bar.append(part);
    words.push(`${stage === "ffn" ? "FFN" : stage} ${percent(share)}`);
  }
  bar.title = words.join(", ");
  bar.setAttribute("aria-label", bar.title);
  return bar;
}

/** Shows what is wrong. Returns whether to try again. */
function showFault(fault) {
  if (fault.status === 401) {
    const use = (key) => {
      apiKey.set(key);
      location.reload();
    };
    at("key-gate").replaceChildren(element("strong", {}, "This server asks for an API key"), keyForm(use));
    at("key-gate").hidden = false;
    return false;
  }
  const isOne = fault.status === 400;
  at("shown").hidden = true;
  at("fault").classList.toggle("fault", !isOne);
  at("fault").replaceChildren(
    element("strong", {}, isOne ? "There is no pipeline here" : "The pipeline cannot be seen"),
    element("p", {}, isOne ? "Attention and FFN are together in one process, so nothing passes between instances. To take them apart:" : fault.message),
    ...(isOne ? [element("p", {}, element("code", {}, "step3 serve --attention-instances 1 --ffn-instances 1 --micro-batches 3"))] : []),
  );
  at("fault").hidden = false;
  return !isOne;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

start();
