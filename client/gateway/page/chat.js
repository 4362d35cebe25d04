// The conversation: what was said so far, and the answer that is under way. It shows itself in the log.
import { saidMessage, AnswerView } from "./messages.js";

export class Chat {
  #gateway;
  #log;
  #options; // () → the request's fields beside `messages`, and `system`; throws where something typed is wrong
  #changed; // told whenever a button may have to change
  #turns = []; // {message, element}, and of an answer `view`, of calls that wait for results `isOpen`
  #running = null; // AbortController of the answer under way

  constructor(gateway, log, options, changed) {
    this.#gateway = gateway;
    this.#log = log;
    this.#options = options;
    this.#changed = changed;
  }

  get isRunning() {
    return this.#running !== null;
  }

  get isEmpty() {
    return this.#turns.length === 0;
  }

  // Throws where there is something to do first; then nothing was said.
  say(text) {
    if (this.#turns.at(-1)?.isOpen) throw new Error("The tool's result comes first; or regenerate the answer.");
    const options = this.#options();
    this.#add({ role: "user", content: text }, saidMessage("user", text));
    void this.#answer(options);
  }

  stop() {
    this.#running?.abort();
  }

  // The last answer anew. Throws where something typed is wrong.
  again() {
    const options = this.#options();
    this.stop();
    while (this.#turns.at(-1)?.message.role === "assistant") this.#turns.pop().element.remove();
    if (!this.isEmpty) void this.#answer(options);
  }

  clear() {
    this.stop();
    this.#running = null;
    this.#turns = [];
    this.#log.replaceChildren();
    this.#changed();
  }

  #add(message, element, more = {}) {
    const turn = { message, element, ...more };
    this.#turns.push(turn);
    this.#log.append(element);
    this.#log.scrollTop = this.#log.scrollHeight;
    return turn;
  }

  #results(calls, texts) {
    let options;
    try {
      options = this.#options();
    } catch (error) {
      this.#turns.at(-1).view.fail(error.message);
      return false;
    }
    this.#turns.at(-1).isOpen = false;
    calls.forEach((call, index) => {
      this.#add({ role: "tool", tool_call_id: call.id, content: texts[index] }, saidMessage("tool", texts[index]));
    });
    void this.#answer(options);
    return true;
  }

  async #answer({ system, ...fields }) {
    const stopping = new AbortController();
    this.#running = stopping;
    const said = this.#turns.map((turn) => turn.message).filter(isSomething);
    const messages = system ? [{ role: "system", content: system }, ...said] : said;
    const body = { ...fields, messages, stream: true, stream_options: { include_usage: true } };
    const view = new AnswerView(this.#log);
    const answer = { role: "assistant", content: "" };
    const turn = this.#add(answer, view.element, { view, isOpen: false });
    const clock = { began: performance.now(), first: 0, last: 0 };
    this.#log.setAttribute("aria-busy", "true"); // read out once it is whole
    this.#changed();
    try {
      const end = await this.#read(body, stopping.signal, answer, view, clock);
      view.end(footOf(end, clock));
    } catch (error) {
      // Nobody answers a call of what was stopped or broke off, so the next request must not hold it.
      delete answer.tool_calls;
      if (stopping.signal.aborted) view.end("Stopped.");
      else view.fail(error.message);
    }
    if (this.#running !== stopping) return; // cleared, or begun anew
    this.#running = null;
    this.#log.removeAttribute("aria-busy");
    if (answer.tool_calls) {
      turn.isOpen = true;
      view.askForResults(answer.tool_calls, (texts) => this.#results(answer.tool_calls, texts));
    }
    this.#changed();
  }

  async #read(body, signal, answer, view, clock) {
    const end = { reason: "", usage: null };
    for await (const { choices, usage } of this.#gateway.chat(body, signal)) {
      if (usage) end.usage = usage;
      const choice = choices[0];
      if (choice === undefined) continue;
      const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
      if (content || reasoning || calls) {
        clock.last = performance.now();
        clock.first ||= clock.last;
      }
      if (reasoning) {
        answer.reasoning_content = (answer.reasoning_content ?? "") + reasoning;
        view.addReasoning(reasoning);
      }
      if (content) {
        answer.content += content;
        view.addText(content);
      }
      for (const { id, function: called } of calls ?? []) {
        answer.tool_calls = [...(answer.tool_calls ?? []), { id, type: "function", function: called }];
        view.addCall({ function: called });
      }
      if (choice.finish_reason) end.reason = choice.finish_reason;
    }
    return end;
  }
}

// An answer that failed or was stopped before its first word is none.
function isSomething(message) {
  return message.role !== "assistant" || message.content !== "" || message.tool_calls !== undefined;
}

function footOf({ reason, usage }, clock) {
  const parts = [];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${usage.prompt_tokens} prompt tokens (${cached} cached)`, `${usage.completion_tokens} tokens`);
  }
  if (clock.first) parts.push(`first after ${Math.round(clock.first - clock.began)} ms`);
  if (usage && clock.last > clock.first) {
    parts.push(`${Math.round(((usage.completion_tokens - 1) * 1000) / (clock.last - clock.first))} tokens/s`);
  }
  if (reason === "length") parts.push("cut at its length");
  if (reason === "abort") parts.push("ended by the service");
  return parts.join(" · ");
}
