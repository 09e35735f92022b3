// Helpers and the theme. The files of this folder are one script, in the order that `SCRIPTS` in ../__init__.py says.

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(one("#data").textContent);

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const text = (value, digits = 4) => {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  return size >= 1e5 || (size > 0 && size < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
};
const cell = (value) =>
  typeof value === "number" ? element("td", { class: "n" }, text(value)) : element("td", {}, text(value));

const dark = matchMedia("(prefers-color-scheme: dark)");
const stored = {
  get: () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  },
  set: (value) => {
    try {
      localStorage.setItem("theme", value);
    } catch {
      /* private window: not kept */
    }
  },
};
const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
const themeButton = one("#theme");
const setTheme = (name) => {
  if (name) document.documentElement.dataset.theme = name;
  themeButton.setAttribute("aria-pressed", String(isDark()));
};
setTheme(stored.get());
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  setTheme(isDark() ? "light" : "dark");
  stored.set(document.documentElement.dataset.theme);
  drawAll();
});
dark.addEventListener("change", () => {
  setTheme(null);
  drawAll();
});

const probe = document.body.appendChild(element("span", { hidden: "" }));
const color = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};
const faded = (rgb, alpha) => rgb.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
