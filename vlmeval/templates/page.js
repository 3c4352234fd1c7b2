// What every page has: its data, elements, tabs, the switch of light and dark, tables that sort.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

// Elements are built, never parsed: whatever a text holds, it stays a text.
const make = (tag, name, ...children) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};
const named = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const grouped = (value) => value.toLocaleString("en-US");
const plural = (count, word) => `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
const isolated = (text) => make("bdi", "", String(text));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// Light and dark: as the system has it until somebody chooses.
const themes = ["auto", "light", "dark"];
const themeButton = find("theme");
const remembered = () => {
  try { return localStorage.getItem("vlmeval-theme"); } catch { return null; }
};
const setTheme = (name) => {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.textContent = { auto: "◐", light: "☀", dark: "☾" }[name];
  themeButton.title = `Colours: ${name}`;
  themeButton.setAttribute("aria-label", themeButton.title);
};
let theme = themes.includes(remembered()) ? remembered() : "auto";
setTheme(theme);
themeButton.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  setTheme(theme);
  try { localStorage.setItem("vlmeval-theme", theme); } catch { /* a page may be where nothing is stored */ }
});

// The address after # says what is shown: #view=items&group=existence&state=wrong&id=1005
const address = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  write(parameters, push = false) {
    const text = String(parameters);
    try {
      history[push ? "pushState" : "replaceState"](null, "", text ? `#${text}` : location.pathname + location.search);
    } catch { /* an embedded page may not have an address */ }
  },
};

// Tabs
const tabs = [...document.querySelectorAll("[role=tab]")];
const panels = tabs.map((tab) => find(tab.getAttribute("aria-controls")));
const currentView = () => panels.find((panel) => !panel.hidden).id;
const openView = (name, focus = false) => {
  if (!panels.some((panel) => panel.id === name)) return;
  tabs.forEach((tab, index) => {
    const chosen = panels[index].id === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    panels[index].hidden = !chosen;
    if (chosen && focus) tab.focus();
  });
  document.dispatchEvent(new Event("view"));
};
tabs.forEach((tab, index) => {
  const choose = (at, focus) => {
    openView(panels[at].id, focus);
    scrollTo(0, 0);
    const parameters = address.read();
    parameters.delete("id");
    parameters.set("view", panels[at].id);
    if (at === 0) parameters.delete("view");
    address.write(parameters);
  };
  tab.addEventListener("click", () => choose(index, false));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.stopPropagation();
    choose((index + step + tabs.length) % tabs.length, true);
  });
});
const measureHead = () => {
  document.documentElement.style.setProperty("--head", `${document.querySelector("header").offsetHeight}px`);
};
measureHead();
addEventListener("resize", measureHead);

// Tables that sort by a click on a column's name
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const read = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    if (!head.textContent.trim()) return;
    const button = make("button", "sort", ...head.childNodes);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = (text) => (text === "" || text === "–" ? NaN : Number(text.replaceAll(",", "")));
      const order = (a, b) => {
        const [x, y] = [number(a), number(b)];
        if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? -1 : 1;
        return a.localeCompare(b);
      };
      const rows = [...body.rows].map((row) => [read(row, at), row]);
      rows.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
}
find("help").addEventListener("click", () => find("keys").showModal());

// Paper cannot be clicked: what is folded is printed as well.
const folded = () => [...document.querySelectorAll("details:not([open])")];
let unfolded = [];
addEventListener("beforeprint", () => { unfolded = folded(); for (const one of unfolded) one.open = true; });
addEventListener("afterprint", () => { for (const one of unfolded) one.open = false; });
