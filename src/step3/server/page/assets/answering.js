// One answer, from the request to its last token, with its times taken.
import { ServerFault, answerChunks } from "./client.js";
import { addChunk } from "./conversation.js";

/**
 * Streams an answer into `turn`; what goes wrong is written there too.
 * @param request the whole request.
 * @param turn an empty answer.
 * @param signal aborted to stop it.
 * @param onChange called when there is more to show.
 */
export async function streamAnswer(request, turn, signal, onChange) {
  const clock = new Clock();
  try {
    for await (const chunk of answerChunks(request, signal)) {
      const isVisible = addChunk(turn, chunk);
      if (isVisible) clock.tick(Boolean(turn.content || turn.calls.length));
      if (chunk.usage) clock.usage = chunk.usage;
      onChange();
    }
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else if (error instanceof ServerFault) turn.fault = { message: error.message, status: error.status };
    else {
      turn.fault = { message: `This page failed: ${error.message}`, status: -1 };
      console.error(error);
    }
  }
  turn.calls = turn.calls.filter(Boolean);
  turn.stats = clock.statistics();
}

class Clock {
  constructor() {
    this.begin = performance.now();
    this.first = this.last = this.thought = null;
    this.pieces = 0;
    this.usage = null;
  }

  tick(hasContent) {
    const now = performance.now();
    this.first ??= now;
    this.last = now;
    this.pieces += 1;
    if (hasContent) this.thought ??= now;
  }

  statistics() {
    if (this.first === null) return null;
    // A stopped answer has no usage; its pieces are mostly tokens.
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const seconds = (this.last - this.first) / 1e3;
    return {
      ttft: (this.first - this.begin) / 1e3,
      tokens,
      isEstimate: !this.usage,
      tokensPerSecond: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      promptTokens: this.usage?.prompt_tokens ?? null,
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? 0,
      thinkingSeconds: ((this.thought ?? this.last) - this.begin) / 1e3,
    };
  }
}
