// The gateway's endpoints, as the page calls them: with the key that was typed, and errors as the gateway says them.
import { serverEvents } from "./server_events.js";

// An answer of the gateway that is an error; `status` is HTTP's.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Gateway {
  #key = "";

  setKey(key) {
    this.#key = key.trim();
  }

  // Names of the served models.
  async models() {
    const response = await this.#fetch("/v1/models", {});
    return (await response.json()).data.map((model) => model.id);
  }

  // The numbers that a request may hold: [{name, is_whole}].
  async numberFields() {
    return (await this.#fetch("/page/fields.json", {})).json();
  }

  // The chunks of a streamed chat. Throws Refused, also for an error in the midst of the stream.
  async *chat(body, signal) {
    const response = await this.#fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const { data } of serverEvents(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message, 200);
      yield chunk;
    }
    throw new Refused("the answer broke off", 200);
  }

  // The engine's events: {event, data}; null instead of a stream where the gateway has no admin address.
  async engineEvents(signal) {
    const response = await this.#fetch("/engine/events", { signal });
    return response.status === 204 ? null : serverEvents(response);
  }

  async #fetch(path, init) {
    const headers = { ...init.headers };
    if (this.#key) headers.authorization = `Bearer ${this.#key}`;
    const response = await fetch(path, { ...init, headers, cache: "no-store", credentials: "omit" });
    if (response.ok) return response;
    const text = await response.text();
    throw new Refused(said(text) || `the gateway answers with status ${response.status}`, response.status);
  }
}

function said(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return "";
  }
}
