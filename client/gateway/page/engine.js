// The engine live: figures from two loads in a row, their history, and the map of its blocks.
import { BlockMap } from "./block_map.js";
import { byId, made } from "./elements.js";
import { Sparkline } from "./sparkline.js";

const RETRY_MS = 2000;
const NO_ADMIN =
  "No admin address was given to this gateway, so the engine is not shown: pagewire gateway --admin HOST:PORT.";

// Shown with a history; each of the figures between two loads.
const CHARTS = [
  ["tokens_per_s", "Tokens a second", (value) => whole(value)],
  ["running", "Running sequences", (value) => whole(value)],
  ["step_ms", "Step time", (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`],
  ["idle", "Worker idle", (value) => percent(value)],
];
const FIGURES = [
  ["waiting", "Waiting sequences", (value) => whole(value)],
  ["used", "Blocks used", (value) => whole(value)],
  ["cached", "Blocks cached", (value) => whole(value)],
  ["free", "Blocks free", (value) => whole(value)],
  ["prompt_per_s", "Prompt tokens a second", (value) => whole(value)],
  ["hits", "Prompt tokens from the cache", (value) => percent(value)],
  ["preemptions", "Preemptions", (value) => whole(value)],
];

export class Engine {
  #gateway;
  #watching = null;
  #last = null;
  #shown = new Map(); // key → {element, sparkline}
  #map = new BlockMap(byId("map"), byId("legend"), byId("map-note"));

  constructor(gateway) {
    this.#gateway = gateway;
    for (const [key, name] of CHARTS) {
      const element = made("strong", "", "–");
      const canvas = made("canvas", "");
      canvas.setAttribute("aria-hidden", "true");
      byId("charts").append(made("div", "chart", made("p", "", name, element), canvas));
      this.#shown.set(key, { element, sparkline: new Sparkline(canvas) });
    }
    for (const [key, name] of FIGURES) {
      const element = made("dd", "", "–");
      byId("figures").append(made("dt", "", name), element);
      this.#shown.set(key, { element, sparkline: null });
    }
    new ResizeObserver(() => this.draw()).observe(byId("engine-live"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  draw() {
    for (const { sparkline } of this.#shown.values()) sparkline?.draw();
    this.#map.draw();
  }

  // Begins to watch, anew where it did; a page that nobody sees watches nothing.
  async watch() {
    this.#watching?.abort();
    if (document.hidden) return;
    const watching = new AbortController();
    this.#watching = watching;
    while (!watching.signal.aborted) {
      try {
        const events = await this.#gateway.engineEvents(watching.signal);
        if (events === null) return this.#note(NO_ADMIN);
        for await (const { event, data } of events) this.#hear(event, JSON.parse(data));
        if (!watching.signal.aborted) this.#trouble("The gateway has ended the stream.");
      } catch (error) {
        if (watching.signal.aborted) return;
        this.#trouble(error.message);
        if (error.status === 401 || error.status === 403) return; // until another key is typed
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  #hear(event, value) {
    if (event === "trouble") return this.#trouble(value.message);
    if (event === "blocks") return this.#map.show(value.uses, value.total_blocks);
    byId("engine-live").hidden = false;
    byId("engine-live").classList.remove("stale");
    this.#note("");
    byId("state").textContent = value.state.replace("SERVICE_STATE_", "").toLowerCase();
    const figures = figuresOf(this.#last, value);
    this.#last = value;
    for (const [key, , text] of [...CHARTS, ...FIGURES]) {
      const { element, sparkline } = this.#shown.get(key);
      const figure = figures[key];
      element.textContent = figure === null ? "–" : text(figure);
      sparkline?.add(figure);
    }
  }

  // What is shown is not what is.
  #trouble(message) {
    this.#note(`The engine cannot be watched: ${message}`);
    this.#last = null;
    byId("state").textContent = "";
    byId("engine-live").classList.add("stale");
  }

  #note(text) {
    byId("engine-note").textContent = text;
    byId("engine-note").hidden = text === "";
  }
}

// Null where there is nothing to divide by. Counts that went down are those of another engine.
function figuresOf(last, load) {
  const figures = {
    running: load.running_sequences,
    waiting: load.waiting_sequences,
    used: load.used_blocks,
    cached: load.cached_blocks,
    free: load.total_blocks - load.used_blocks - load.cached_blocks,
    hits: load.prompt_tokens > 0 ? load.cached_prompt_tokens / load.prompt_tokens : null,
    preemptions: load.preemptions,
    tokens_per_s: null,
    prompt_per_s: null,
    step_ms: null,
    idle: null,
  };
  if (last === null || load.steps < last.steps) return figures;
  const since = (name) => load[name] - last[name];
  const elapsed_s = since("at_s");
  const [busy, idle, steps] = [since("worker_busy_us"), since("worker_idle_us"), since("steps")];
  if (elapsed_s > 0) {
    figures.tokens_per_s = since("output_tokens") / elapsed_s;
    figures.prompt_per_s = since("prompt_tokens") / elapsed_s;
  }
  if (steps > 0) figures.step_ms = busy / steps / 1000;
  if (busy + idle > 0) figures.idle = idle / (busy + idle);
  return figures;
}

function whole(value) {
  return Math.round(value).toLocaleString("en");
}

function percent(value) {
  return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}
