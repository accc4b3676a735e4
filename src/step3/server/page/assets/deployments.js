// Deployments and what they cost at a user's prices.
import { ask } from "./client.js";

const remembered = new Map();
const MOST_REMEMBERED = 2000;

/** What serves a demand, cheapest at one price or another; asked once each. */
export async function deployments(demand, signal) {
  const key = JSON.stringify(demand);
  if (!remembered.has(key)) {
    const found = await (await ask("planner/deployments", demand, signal)).json();
    if (remembered.size > MOST_REMEMBERED) remembered.clear();
    remembered.set(key, found);
  }
  return remembered.get(key);
}

/** The points with their prices: `[{attention, ffn, isSplit, cost, place}]`, cheapest first. */
export function priced(points, prices) {
  const found = points.map(([attention, ffn, isSplit, attentionCards, ffnCards, tokens], place) => {
    const dollarsAnHour = prices[attention] * attentionCards + prices[ffn] * ffnCards;
    return { attention, ffn, isSplit, cards: attentionCards + ffnCards, cost: (dollarsAnHour / 3600 / tokens) * 1e6, place };
  });
  return found.sort((one, other) => one.cost - other.cost || one.cards - other.cards);
}

/** The cheapest of each choice of cards. */
export function bestOfEach(sorted) {
  const seen = new Set();
  return sorted.filter((one) => {
    const choice = `${one.attention}/${one.ffn}/${one.isSplit}`;
    return !seen.has(choice) && seen.add(choice);
  });
}

/** Curves of the best split and of each card alone. @param rankings [[x, priced points]]. */
export function curvesOf(rankings, cards) {
  const point = (x, one) => (one ? [[x, one.cost]] : []);
  const split = rankings.flatMap(([x, sorted]) => point(x, sorted.find((one) => one.isSplit)));
  const alone = cards.map((card, place) => ({
    name: `${card} alone`,
    hue: 1 + (place % 4),
    points: rankings.flatMap(([x, sorted]) => point(x, sorted.find((one) => !one.isSplit && one.attention === card))),
  }));
  return [{ name: "AFD, best of all", hue: 0, points: split }, ...alone];
}

// Below this share a saving is within what the model of the hardware can tell (step3.plan.advice).
const WORTH_IT = 0.02;

/** Whether to take attention and FFN apart: `{isSplit, text}`. */
export function verdict(sorted) {
  const split = sorted.find((one) => one.isSplit);
  const whole = sorted.find((one) => !one.isSplit);
  if (!split) return { isSplit: false, text: "No deployment with AFD meets this demand." };
  if (!whole) return { isSplit: true, text: "Use AFD: no deployment without it meets this demand." };
  const saving = 1 - split.cost / whole.cost;
  const cards = split.attention === split.ffn ? "" : `, attention on ${split.attention} and the FFN on ${split.ffn}`;
  if (saving > WORTH_IT) return { isSplit: true, text: `Use AFD: it saves ${percent(saving)} over ${whole.attention} alone${cards}.` };
  if (saving >= -WORTH_IT) return { isSplit: false, text: "AFD makes no difference here: take what is simpler to run." };
  return { isSplit: false, text: `Do not use AFD: it costs ${percent(-saving)} more than ${whole.attention} alone.` };
}

function percent(share) {
  return `${Math.round(share * 100)} %`;
}
