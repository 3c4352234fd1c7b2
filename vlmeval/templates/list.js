// The list of items: thousands of rows of which only those in view exist, filters, search, order, keys, addresses.
//
// setup:
//   entries    what is listed; each has ``id``
//   noun       what one is called
//   words      entry -> everything a search looks at
//   filters    [{ name, all, values: entry -> list of keys, shown: key -> words }]
//   orders     [{ name, words, key: entry -> number or text }], ascending; the first is as listed
//   row        entry -> nodes of a row
//   open       entry -> [title nodes, nodes]
//   summary    entries -> words on those that are shown
const gallery = (setup) => {
  const OVERSCAN = 6;
  const list = find("list");
  const search = find("search");
  const dialog = find("large");
  const entries = setup.entries;
  const placeOf = new Map();
  entries.forEach((entry, at) => { if (!placeOf.has(String(entry.id))) placeOf.set(String(entry.id), at); });
  let visible = entries;
  let current = 0;
  let large = 0;
  let height = 0;
  let shownRows = new Map();
  let words = null;

  // Filters: only those that tell items apart
  const filters = [];
  for (const filter of setup.filters) {
    const counts = new Map();
    for (const entry of entries) {
      for (const key of filter.values(entry)) counts.set(key, (counts.get(key) || 0) + 1);
    }
    if (counts.size < (filter.always ? 1 : 2) || counts.size > 1500) continue;
    const keys = filter.keys ? filter.keys.filter((key) => counts.has(key))
      : [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || (a < b ? -1 : 1));
    const select = named(make("select"), { "aria-label": filter.name, id: `filter-${filter.name.replace(/\W+/g, "-")}` });
    select.append(new Option(filter.all, ""));
    for (const key of keys) {
      const shown = (filter.shown || String)(key);
      const option = new Option(`${shown.length > 60 ? `${shown.slice(0, 59)}…` : shown} (${grouped(counts.get(key))})`, key);
      select.append(option);
    }
    select.addEventListener("change", () => { apply(); note(); });
    find("filters").append(select);
    filters.push({ ...filter, select, has: (key) => counts.has(key) });
  }
  const order = find("order");
  const orders = setup.orders.filter((one, at) => at === 0 || entries.some((entry) => one.key(entry) !== undefined));
  for (const one of orders) order.append(new Option(one.words, one.name));
  order.hidden = orders.length < 2;
  order.addEventListener("change", () => { apply(); note(); });

  function apply() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (wanted.length && !words) words = entries.map((entry) => setup.words(entry).toLowerCase());
    const active = filters.filter(({ select }) => select.value !== "");
    visible = entries.filter((entry, at) =>
      active.every((one) => one.values(entry).includes(one.select.value))
      && wanted.every((word) => words[at].includes(word)));
    const by = orders.find((one) => one.name === order.value);
    if (by && by.key) {
      const keyed = visible.map((entry, at) => [by.key(entry), at, entry]);
      keyed.sort(([a, i], [b, j]) => {
        if (a === b) return i - j;
        if (a === undefined || b === undefined) return a === undefined ? 1 : -1;
        return a < b ? -1 : 1;
      });
      visible = keyed.map(([, , entry]) => entry);
    }
    for (const { select } of filters) select.classList.toggle("on", select.value !== "");
    const narrowed = visible.length < entries.length;
    find("count").textContent = (narrowed ? `${grouped(visible.length)} of ${plural(entries.length, setup.noun)}`
      : plural(entries.length, setup.noun)) + setup.summary(visible);
    find("clear").hidden = !narrowed;
    find("empty").hidden = visible.length > 0;
    current = 0;
    lay(true);
  }

  // Rows have one height, so that a place in the list is a place on the page.
  function lay(fresh = false) {
    if (list.offsetParent === null) return;
    if (fresh) {
      height = parseFloat(getComputedStyle(list).getPropertyValue("--row"));
      list.style.height = `${visible.length * height}px`;
      list.replaceChildren();
      shownRows = new Map();
    }
    const above = -list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / height) - OVERSCAN);
    const last = Math.min(visible.length - 1, Math.ceil((above + innerHeight) / height) + OVERSCAN);
    for (const [at, row] of shownRows) {
      if (at < first || at > last) {
        // A row that has the focus stays, or keys would lead nowhere.
        if (row.contains(document.activeElement)) continue;
        row.remove();
        shownRows.delete(at);
      }
    }
    for (let at = first; at <= last; at += 1) if (!shownRows.has(at)) place(at);
  }
  function place(at) {
    const entry = visible[at];
    const link = named(make("a", `row ${entry.state || ""} ${entry.long ? "long" : ""}`, ...setup.row(entry)), { href: `#${itemAddress(entry)}`, draggable: "false" });
    link.tabIndex = at === current ? 0 : -1;
    link.dataset.at = at;
    const item = named(make("li", "", link), { "aria-setsize": visible.length, "aria-posinset": at + 1 });
    item.style.transform = `translateY(${at * height}px)`;
    shownRows.set(at, item);
    list.append(item);
  }
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; lay(); });
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", () => lay(true));
  document.addEventListener("view", () => lay(true));

  // Addresses
  function state() {
    const parameters = new URLSearchParams();
    parameters.set("view", "items");
    for (const { name, select } of filters) if (select.value !== "") parameters.set(name, select.value);
    if (search.value.trim()) parameters.set("q", search.value);
    if (orders.length > 1 && order.value !== orders[0].name) parameters.set("order", order.value);
    return parameters;
  }
  function itemAddress(entry) {
    const parameters = state();
    parameters.delete("view");
    parameters.set("id", entry.id);
    return String(parameters);
  }
  const note = () => address.write(state());
  function follow() {
    const parameters = address.read();
    const known = new Map(filters.map((one) => [one.name, one]));
    const wanted = [...parameters.keys()].some((name) => name === "q" || name === "id" || known.has(name));
    if (!wanted && !parameters.has("order")) {
      if (dialog.open) dialog.close();
      openView(parameters.get("view") || panels[0].id);
      if (currentView() === "items") reset();
      return;
    }
    for (const one of filters) {
      const value = parameters.get(one.name) || "";
      one.select.value = one.has(value) ? value : "";
    }
    search.value = parameters.get("q") || "";
    order.value = orders.some((one) => one.name === parameters.get("order")) ? parameters.get("order") : orders[0].name;
    openView("items");
    apply();
    const id = parameters.get("id");
    if (id !== null && placeOf.has(id)) {
      const entry = entries[placeOf.get(id)];
      if (!visible.includes(entry)) reset();
      show(visible.indexOf(entry), false);
    } else if (dialog.open) dialog.close();
  }
  function reset() {
    search.value = "";
    for (const { select } of filters) select.value = "";
    apply();
  }
  addEventListener("hashchange", follow);
  addEventListener("popstate", follow);

  const clear = () => { reset(); note(); search.focus(); };
  search.addEventListener("input", () => {
    apply();
    note();
    const top = list.getBoundingClientRect().top;
    if (top < 0) scrollTo(0, scrollY + top - 200);
  });
  find("clear").addEventListener("click", clear);
  find("clear-empty").addEventListener("click", clear);

  // One row at a time can be reached by Tab; j, k and the arrows move between them.
  function point(at) {
    const before = shownRows.get(current);
    if (before) before.firstChild.tabIndex = -1;
    current = Math.max(0, Math.min(at, visible.length - 1));
    const now = shownRows.get(current);
    if (now) now.firstChild.tabIndex = 0;
  }
  function go(at, focus = true) {
    if (!visible.length) return;
    point(at);
    const top = list.getBoundingClientRect().top + scrollY + current * height;
    const head = find("tools").getBoundingClientRect().bottom + 4;
    if (top < scrollY + head) scrollTo(0, top - head);
    else if (top + height > scrollY + innerHeight) scrollTo(0, top + height - innerHeight + 4);
    lay();
    if (focus && shownRows.get(current)) shownRows.get(current).firstChild.focus({ preventScroll: true });
  }
  list.addEventListener("focusin", (event) => {
    const row = event.target.closest(".row");
    if (row) point(Number(row.dataset.at));
  });
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    show(Number(row.dataset.at));
  });

  // One item, large
  function show(at, push = true) {
    if (!visible.length) return;
    const fresh = !dialog.open;
    point(at);
    large = current;
    const entry = visible[current];
    const [title, nodes] = setup.open(entry);
    find("large-title").replaceChildren(...title);
    find("large-place").textContent = `${grouped(current + 1)} of ${grouped(visible.length)}`;
    find("large-body").replaceChildren(...nodes);
    find("previous").disabled = current === 0;
    find("next").disabled = current === visible.length - 1;
    if (push) address.write(itemAddress(entry), fresh);
    if (fresh) {
      dialog.showModal();
      dialog.focus();
    }
    dialog.scrollTop = 0;
    go(current, false);
  }
  find("previous").addEventListener("click", () => show(current - 1));
  find("next").addEventListener("click", () => show(current + 1));
  dialog.addEventListener("close", () => {
    if (address.read().has("id")) note();
    // Closing gave the focus back to the row that was opened first.
    go(large);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing || find("keys").open) return;
    const step = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1, ArrowRight: dialog.open ? 1 : 0, ArrowLeft: dialog.open ? -1 : 0 }[event.key];
    if (event.key === "?") find("keys").showModal();
    else if (dialog.open && step) {
      // Up and down scroll a long answer.
      if (!/^Arrow(Up|Down)$/.test(event.key)) { event.preventDefault(); show(current + step); }
    } else if (dialog.open) return;
    else if (event.key === "/") {
      event.preventDefault();
      openView("items");
      search.focus();
    } else if (/^[1-9]$/.test(event.key) && tabs[event.key - 1]) tabs[event.key - 1].click();
    else if (step && currentView() === "items") {
      event.preventDefault();
      const focused = document.activeElement.closest && document.activeElement.closest(".row");
      go(focused ? current + step : current);
    }
  });

  apply();
  follow();
  return { filter: (name) => filters.find((one) => one.name === name), has: (id) => placeOf.has(id) };
};
