// The page: its parts put together, and what keys and buttons do.
import { Chat } from "./chat.js";
import { byId } from "./elements.js";
import { Engine } from "./engine.js";
import { Gateway } from "./gateway.js";
import { isEnter } from "./messages.js";
import { Settings } from "./settings.js";

const RETRY_MS = 2000;

const gateway = new Gateway();
const settings = new Settings();
const chat = new Chat(gateway, byId("log"), () => settings.read(), showButtons);
const engine = new Engine(gateway);
let asked = 0; // how often models were asked for; an older answer is nobody's

function showButtons() {
  byId("send").disabled = chat.isRunning;
  byId("stop").disabled = !chat.isRunning;
  byId("again").disabled = chat.isEmpty;
  byId("clear").disabled = chat.isEmpty;
}

function showTrouble(message) {
  byId("trouble").textContent = message;
  byId("trouble").hidden = message === "";
}

// Does what a button says, and shows what it has to say.
function trying(action) {
  showTrouble("");
  try {
    action();
  } catch (error) {
    showTrouble(error.message);
  }
}

function send() {
  const prompt = byId("prompt");
  if (chat.isRunning || prompt.value.trim() === "") return;
  trying(() => {
    chat.say(prompt.value);
    prompt.value = "";
  });
}

async function showModels() {
  asked += 1;
  const mine = asked;
  while (mine === asked) {
    try {
      const names = await gateway.models();
      if (mine !== asked) return;
      const select = byId("model");
      const chosen = select.value;
      select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
      return showTrouble("");
    } catch (error) {
      if (mine !== asked) return;
      showTrouble(`No models: ${error.message}`);
      if (error.status === 401 || error.status === 403) return; // until another key is typed
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function begin() {
  void showModels();
  void engine.watch();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (!isEnter(event)) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) chat.stop();
});
byId("stop").addEventListener("click", () => chat.stop());
byId("again").addEventListener("click", () => trying(() => chat.again()));
byId("clear").addEventListener("click", () => {
  showTrouble("");
  chat.clear();
  byId("prompt").focus();
});
byId("who").addEventListener("submit", (event) => event.preventDefault());
byId("key").addEventListener("change", () => {
  gateway.setKey(byId("key").value);
  begin();
});
document.addEventListener("visibilitychange", () => void engine.watch());

try {
  settings.offer(await gateway.numberFields());
} catch (error) {
  byId("fields").textContent = `No settings: ${error.message}`;
}
byId("prompt").focus();
begin();
