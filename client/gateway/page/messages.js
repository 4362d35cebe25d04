// Messages of the conversation, as the log shows them. It knows no requests: what is typed goes to who asked for it.
import { made } from "./elements.js";

// What the person said, or a tool did.
export function saidMessage(role, text) {
  const name = role === "tool" ? "Tool result" : "You";
  return made("article", `message ${role}`, made("p", "who-said", name), made("p", "text", text));
}

// An answer as it comes. Text waits for the next frame, so that a fast model does not slow the page down.
export class AnswerView {
  #log;
  #body = made("div", "body");
  #reasoning = null;
  #summary = null;
  #text = null;
  #pending = [];
  #frame = 0;

  constructor(log) {
    this.#log = log;
    this.element = made("article", "message assistant", made("p", "who-said", "Model"), this.#body);
  }

  addReasoning(text) {
    if (this.#reasoning === null) {
      this.#summary = made("summary", "", "Reasoning…");
      const node = document.createTextNode("");
      this.#reasoning = node;
      this.#body.append(made("details", "reasoning", this.#summary, made("div", "", node)));
    }
    this.#later(this.#reasoning, text);
  }

  addText(text) {
    if (this.#text === null) {
      this.#text = document.createTextNode("");
      this.#body.append(made("p", "text", this.#text));
    }
    this.#later(this.#text, text);
  }

  addCall(call) {
    const { name, arguments: text } = call.function;
    const heading = made("p", "", "Calls ", made("code", "", name));
    this.#keepingSight(() => this.#body.append(made("div", "call", heading, made("pre", "", indented(text)))));
    this.#text = null; // text behind a call stands behind it
  }

  // Fields for the results of these calls; `send` gets them in their order, once all are filled, and says whether it
  // took them.
  askForResults(calls, send) {
    const cards = this.#body.querySelectorAll(".call");
    const fields = calls.map((call, index) => {
      const field = made("textarea", "");
      field.rows = 2;
      field.spellcheck = false;
      cards[index].append(made("label", "", `Result of ${call.function.name} `, field));
      field.addEventListener("keydown", (event) => {
        if (!isEnter(event)) return;
        event.preventDefault();
        finish();
      });
      return field;
    });
    const button = made("button", "main", calls.length > 1 ? "Send results" : "Send result");
    button.type = "button";
    const row = made("div", "results", button);
    const finish = () => {
      const empty = fields.find((field) => field.value.trim() === "");
      if (empty !== undefined) {
        empty.focus();
        return;
      }
      if (send(fields.map((field) => field.value))) this.dropFields();
    };
    button.addEventListener("click", finish);
    this.#keepingSight(() => this.#body.append(row));
    fields[0].focus();
  }

  // Whatever asked for results is gone.
  dropFields() {
    for (const element of this.#body.querySelectorAll(".call label, .results")) element.remove();
  }

  // The end, and what there is to say about it.
  end(foot) {
    this.#flush();
    if (this.#summary !== null) this.#summary.textContent = "Reasoning";
    if (foot) this.#keepingSight(() => this.element.append(made("p", "foot", foot)));
  }

  fail(message) {
    this.end("");
    const trouble = made("p", "trouble", message);
    trouble.setAttribute("role", "alert");
    this.#keepingSight(() => this.element.append(trouble));
  }

  #later(node, text) {
    this.#pending.push([node, text]);
    if (this.#frame === 0) this.#frame = requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const pending = this.#pending;
    this.#pending = [];
    this.#keepingSight(() => {
      for (const [node, text] of pending) node.appendData(text);
    });
  }

  // The log stays at its end where it was there, and where the person left it otherwise.
  #keepingSight(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    const wasAtEnd = scrollHeight - scrollTop - clientHeight < 40;
    change();
    if (wasAtEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }
}

// Enter alone, and not the one that ends a composition of an input method.
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

// A call's arguments, a key a line; as the model wrote them where they are no object.
function indented(text) {
  try {
    const value = JSON.parse(text);
    const isPlain = Object.values(value).every((each) => typeof each === "string" || typeof each === "boolean");
    // Numbers stay as they are written: 1.0 and long integers would not be the same again.
    return isPlain ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}
