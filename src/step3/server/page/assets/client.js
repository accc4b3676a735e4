// The server's OpenAI interface, as this page uses it.

/** What the server, or the way to it, did wrong. `status` is 0 where there was no answer at all. */
export class ServerFault extends Error {
  constructor(message, status, param = null, retryAfter = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

const KEY = "step3.key";

/** The API key: kept for this tab only. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** A request to a path beside this page. */
export async function ask(path, body, signal) {
  const headers = {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerFault("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) throw await faultOf(response);
  return response;
}

async function faultOf(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // A proxy's page, or nothing.
  }
  const message = told?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  return new ServerFault(message, response.status, told?.param ?? null, response.headers.get("Retry-After"));
}

/** The models that the server has: `[{id, max_model_len}]`. */
export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

/** The chunks of a streamed answer, as they come. */
export async function* answerChunks(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await ask("v1/chat/completions", body, signal);
  for await (const data of eventData(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerFault(chunk.error.message, 200);
    yield chunk;
  }
  throw new ServerFault("The connection ended before the answer did.", 0);
}

/** The data of server-sent events. */
export async function* eventData(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      const events = pending.split(/\r?\n\r?\n/);
      pending = events.pop();
      for (const one of events) {
        const lines = one.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (signal?.aborted) throw new DOMException("stopped", "AbortError");
    throw new ServerFault("The connection broke off in the middle of the answer.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}
