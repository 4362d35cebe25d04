// Settings of a request: the fields that the person fills, read when a request is made.
import { byId, made } from "./elements.js";

export class Settings {
  #fields = []; // {name, is_whole, input}

  // Makes a field for each number that a request may hold: [{name, is_whole}].
  offer(fields) {
    this.#fields = fields.map((field) => {
      const input = made("input", "");
      input.type = "number";
      input.name = field.name;
      input.step = field.is_whole ? "1" : "any";
      byId("fields").append(made("label", "", field.name, input));
      return { ...field, input };
    });
  }

  // The fields of a request beside its messages, and `system`. Throws with what is wrong, and shows the field.
  read() {
    const request = { model: byId("model").value, system: byId("system").value.trim() };
    if (!request.model) throw new Error("No model is chosen.");
    for (const { name, is_whole: isWhole, input } of this.#fields) {
      if (input.validity.badInput) throw shown(input, `${name} is no number.`);
      if (input.value === "") continue;
      const value = Number(input.value);
      if (isWhole && !Number.isSafeInteger(value)) throw shown(input, `${name} must be a whole number below 2^53.`);
      request[name] = value;
    }
    const text = byId("tools").value.trim();
    if (text) request.tools = tools(text);
    return request;
  }
}

function tools(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw shown(byId("tools"), `Tools are not JSON: ${error.message}`);
  }
  if (!Array.isArray(value)) throw shown(byId("tools"), "Tools must be a JSON list.");
  return value;
}

function shown(element, message) {
  byId("settings").open = true;
  element.focus();
  return new Error(message);
}
