// The server's OpenAI-compatible routes, and what their failures mean.

import { recall, remember } from "./dom.js";

export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super(body?.error?.message ?? `status ${status}`);
    this.status = status;
    this.code = body?.error?.code;
    this.wait = Number(retryAfter ?? NaN);
  }
}

let key = recall("key", "sessionStorage"); // until the tab is closed
export const setKey = (value) => remember("key", (key = value), "sessionStorage");

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0);
  }
  if (response.ok) return response;
  throw new ApiError(response.status, await response.json().catch(() => null), response.headers.get("Retry-After"));
}

export const models = async () => (await (await call("v1/models")).json()).data.map((model) => model.id);

/** The events of a streamed answer. Throws ApiError, also where the stream breaks off or carries an error. */
export async function* stream(body, signal) {
  const request = { ...body, stream: true, stream_options: { include_usage: true }, truncate: "oldest" };
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); // whole characters at any chunking
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError(0);
    });
    if (done) throw new ApiError(0); // [DONE] was not seen
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      if (line.slice(5).trim() === "[DONE]") return void reader.cancel().catch(() => {});
      const event = JSON.parse(line.slice(5));
      if (event.error) throw new ApiError(500, event);
      yield event;
    }
  }
}

/** Wait, or throw as soon as the signal says stop. */
export const pause = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
