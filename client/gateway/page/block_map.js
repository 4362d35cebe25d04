// The block map: a square for each KV block, in the colour of what holds it.
import { colour, made, sized } from "./elements.js";

const CACHED = 255;
const SIZES = [14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1];
const MOST_HEIGHT = 320;
const KINDS = [
  ["used", "one sequence"],
  ["shared", "shared by several"],
  ["cached", "prefix cache alone"],
  ["free", "free"],
];

export class BlockMap {
  #canvas;
  #note;
  #counts = {};
  #uses = new Uint8Array();

  constructor(canvas, legend, note) {
    this.#canvas = canvas;
    this.#note = note;
    for (const [kind, name] of KINDS) {
      this.#counts[kind] = made("span", "", "0");
      legend.append(made("li", kind, `${name}: `, this.#counts[kind]));
    }
  }

  // `uses` in base64, a byte for each block as the contract has it; `total` may be more than were looked at.
  show(uses, total) {
    this.#uses = Uint8Array.from(atob(uses), (character) => character.charCodeAt(0));
    const counted = { used: 0, shared: 0, cached: 0, free: 0 };
    for (const use of this.#uses) counted[kindOf(use)] += 1;
    for (const [kind, count] of Object.entries(counted)) this.#counts[kind].textContent = count.toLocaleString("en");
    const shown = this.#uses.length;
    const said = KINDS.map(([kind, name]) => `${name} ${counted[kind]}`).join(", ");
    this.#canvas.setAttribute("aria-label", `Map of ${shown} KV blocks: ${said}`);
    this.#note.hidden = shown > 0 && shown === total;
    this.#note.textContent = shown === 0 ? "No blocks yet." : `The first ${shown} of ${total} blocks.`;
    this.draw();
  }

  draw() {
    const width = this.#canvas.clientWidth;
    const count = this.#uses.length;
    if (width === 0 || count === 0) return;
    const size = SIZES.find((each) => Math.ceil(count / columnsOf(width, each)) * each <= MOST_HEIGHT) ?? 1;
    const columns = columnsOf(width, size);
    const height = Math.ceil(count / columns) * size;
    this.#canvas.style.height = `${height}px`;
    const context = sized(this.#canvas, width, height);
    const inner = size > 3 ? size - 1 : size;
    for (const [kind] of KINDS) {
      context.fillStyle = colour(kind);
      this.#uses.forEach((use, index) => {
        if (kindOf(use) !== kind) return;
        context.fillRect((index % columns) * size, Math.floor(index / columns) * size, inner, inner);
      });
    }
  }
}

function columnsOf(width, size) {
  return Math.max(1, Math.floor(width / size));
}

function kindOf(use) {
  if (use === 0) return "free";
  if (use === CACHED) return "cached";
  return use === 1 ? "used" : "shared";
}
