// Elements of the document, made and found. Text is only ever put in as text.

export function byId(id) {
  return document.getElementById(id);
}

// A new element with this class, and children: elements, or strings as text.
export function made(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// A canvas made as large as it is shown, in the screen's own pixels; its 2D context is scaled to CSS pixels.
export function sized(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// The value of a colour of the style sheet, light or dark as it is now.
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
