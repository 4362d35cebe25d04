// A sparkline: the newest values of one figure, drawn from 0 to the largest of them.
import { colour, sized } from "./elements.js";

const MOST = 120;

export class Sparkline {
  #canvas;
  #values = [];

  constructor(canvas) {
    this.#canvas = canvas;
  }

  // One more value; null where there was none.
  add(value) {
    this.#values.push(value);
    if (this.#values.length > MOST) this.#values.shift();
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (width === 0) return;
    const context = sized(this.#canvas, width, height);
    const largest = Math.max(...this.#values.map((value) => value ?? 0)) || 1;
    const first = MOST - this.#values.length;
    context.fillStyle = context.strokeStyle = colour("used");
    context.lineWidth = 1.5;
    let run = [];
    this.#values.forEach((value, index) => {
      if (value === null) {
        stroke(context, run, height);
        run = [];
      } else {
        run.push([((first + index) * width) / (MOST - 1), height - 1 - (value / largest) * (height - 3)]);
      }
    });
    stroke(context, run, height);
  }
}

function stroke(context, points, height) {
  if (points.length === 0) return;
  const [start, end] = [points[0][0], points.at(-1)[0]];
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
  context.lineTo(end, height);
  context.lineTo(start, height);
  context.globalAlpha = 0.15;
  context.fill();
  context.globalAlpha = 1;
}
