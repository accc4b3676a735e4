// Elements without markup: whatever a model or a user wrote goes in as text.

/** An element with properties, `aria-*` and `data-*` attributes, listeners (`onclick`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else if (name === "class") made.className = value;
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const PATHS = {
  send: "M12 19V5m-6 6 6-6 6 6",
  stop: "M7 7h10v10H7z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 12.5l4.5 4.5L19 7",
  again: "M4 12a8 8 0 1 0 2.6-5.9M4 4v4.5h4.5",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  close: "M6 6l12 12M18 6L6 18",
  settings: "M4 7h9m4 0h3M4 17h3m4 0h9M15 4.5v5M9 14.5v5",
  fresh: "M12 5v14M5 12h14",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  tool: "M14.5 6.5a4 4 0 0 0-5.3 4.9L4 16.6V20h3.4l5.2-5.2a4 4 0 0 0 4.9-5.3L15 12l-3-3z",
  sum: "M4 8h6M7 5v6M14 8h6M5 15l4 4m0-4l-4 4M14 15.5h6M14 18.5h6",
  fold: "M9 6l6 6-6 6",
};

/** A drawing of one line, 20 pixels wide; buttons around it bring their own name. */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", width: 20, height: 20, class: "icon", "aria-hidden": "true" },
    svg("path", { d: PATHS[name] }),
  );
}

/** A button of an icon, with a name for those who cannot see it. */
export function iconButton(name, label, onclick, properties = {}) {
  return element("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      copyByHand(text());
    }
    button.replaceChildren(icon("done"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1200);
  });
  return button;
}

// The clipboard is closed to pages that come over plain HTTP from another machine.
function copyByHand(text) {
  const area = element("textarea", { value: text, class: "offscreen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Remembers a choice of light, dark or the system's, and switches through them. */
export function setUpTheme(button) {
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const order = Object.keys(names);
  let current = document.documentElement.dataset.theme ?? "auto";
  const show = () => {
    button.setAttribute("aria-label", `Colours: ${names[current]}`);
    button.title = `Colours: ${names[current]}`;
  };
  button.append(icon("theme"));
  button.onclick = () => {
    current = order[(order.indexOf(current) + 1) % order.length];
    if (current === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = current;
    localStorage.setItem("step3.theme", current);
    show();
  };
  show();
}
