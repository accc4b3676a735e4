// A conversation as data: turns of a user, of the assistant, and results of tools.

/**
 * @typedef {{role: "user", text: string, pictures: string[]}} UserTurn
 * @typedef {{id: string, name: string, arguments: string}} Call
 * @typedef {{role: "assistant", reasoning: string, content: string, calls: Call[], finish: ?string,
 *            fault: ?{message: string, status: number}, stats: ?object}} AssistantTurn
 * @typedef {{role: "tool", id: string, name: string, text: string}} ToolTurn
 */

/** An answer that has not begun. */
export function emptyAnswer() {
  return { role: "assistant", reasoning: "", content: "", calls: [], finish: null, fault: null, stats: null };
}

/** The turns as the messages of a request. Answers that failed before they said anything are left out. */
export function messagesOf(turns, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") messages.push({ role: "user", content: userContent(turn) });
    else if (turn.role === "tool") messages.push({ role: "tool", tool_call_id: turn.id, content: turn.text });
    else if (turn.content || turn.calls.length) messages.push(assistantMessage(turn));
  }
  return messages;
}

function userContent(turn) {
  if (!turn.pictures.length) return turn.text;
  const pictures = turn.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  return turn.text ? [...pictures, { type: "text", text: turn.text }] : pictures;
}

function assistantMessage(turn) {
  const message = { role: "assistant", content: turn.content };
  if (turn.calls.length) {
    message.tool_calls = turn.calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return message;
}

/** Adds a chunk's delta to an answer; true if there was anything to see in it. */
export function addChunk(answer, chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  const delta = choice.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  answer.reasoning += reasoning;
  answer.content += delta.content ?? "";
  for (const piece of delta.tool_calls ?? []) {
    answer.calls[piece.index] ??= { id: "", name: "", arguments: "" };
    const call = answer.calls[piece.index];
    call.id = piece.id ?? call.id;
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  return Boolean(reasoning || delta.content || delta.tool_calls);
}

const KEPT = "step3.conversation";

/** Keeps a conversation for a reload of this tab; one that is too large for that is not kept. */
export function keep(turns) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(turns));
  } catch {
    sessionStorage.removeItem(KEPT);
  }
}

/** What `keep` kept. */
export function kept() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(turns) ? turns : [];
  } catch {
    return [];
  }
}
