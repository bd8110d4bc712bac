// Small helpers for the document. Everything from the server goes in as text, never as markup.

export const $ = (id) => document.getElementById(id);

// An element: `el("td.number", "12")`, or with properties and children.
export function el(what, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) made.append(child);
    else if (typeof child === "object") set(made, child);
    else made.append(String(child));
  }
  return made;
}

function set(made, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(made, attributes);
  made.append(...children);
  return made;
}

// Words with `code` between them.
export const prose = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", part) : part));

// Assigned only when it changes: a screen reader says every assignment.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Rebuilds a list only when what it shows has changed, so that focus and selection stay where they are.
const shown = new WeakMap();
export function rebuild(node, key, make) {
  const text = JSON.stringify(key);
  if (shown.get(node) === text) return;
  shown.set(node, text);
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  node.replaceChildren(...[make()].flat(Infinity).filter(Boolean));
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages of https and of localhost have a clipboard.
    const area = el("textarea.hidden", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export function copyable(text, short, what) {
  const button = el("button.copy", short, { type: "button", title: text, "aria-label": `Copy ${what} ${text}` });
  button.addEventListener("click", async () => {
    await copy(text);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1200);
  });
  return button;
}
