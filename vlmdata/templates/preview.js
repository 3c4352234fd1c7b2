"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);

  // Elements are built, never parsed: whatever a text holds, it stays a text.
  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const grouped = (value) => value.toLocaleString("en-US");
  const plural = (count, word) => `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
  const isolated = (text) => make("bdi", "", text);

  const altOf = (row, index) => {
    const image = row.images[index];
    const what = row.label ? `${row.label}, ` : "";
    return `Image ${index + 1} of ${row.images.length}: ${what}${image.width} by ${image.height} pixels`;
  };
  const picture = (row, index, lazy = true) => {
    const image = row.images[index];
    if (image.thumb === null) return make("span", "none", "this image cannot be shown");
    const element = make("img");
    element.src = data.pictures[image.thumb];
    element.alt = altOf(row, index);
    element.decoding = "async";
    if (lazy) element.loading = "lazy";
    return element;
  };
  const place = (row, index) => {
    const image = row.images[index];
    const mark = make("span", "place");
    if (image && image.thumb !== null) {
      const small = make("img");
      small.src = data.pictures[image.thumb];
      small.alt = "";
      mark.append(small);
    }
    mark.append(` image ${index + 1}`);
    return mark;
  };
  const turnOf = (row, turn) => {
    const text = make("div", "text");
    text.dir = "auto";
    for (const part of turn.parts) text.append(typeof part === "number" ? place(row, part) : part);
    return make("div", `turn ${turn.role}`, make("span", "role", turn.role), text);
  };
  const sideOf = (name, pieces) => {
    const text = make("div", "text");
    text.dir = "auto";
    for (const [piece, differs] of pieces) text.append(differs ? make("mark", "", piece) : piece);
    return make("div", `side ${name}`, make("span", "role", name), text);
  };
  const conversation = (row) => {
    const parts = row.turns.map((turn) => turnOf(row, turn));
    if (row.chosen) parts.push(make("div", "sides", sideOf("chosen", row.chosen), sideOf("rejected", row.rejected)));
    return parts;
  };

  // Rows
  const SHOWN_PHOTOS = 3;
  const textOf = (pieces) => pieces.map((piece) => piece[0]).join("");
  const wordsOf = (row) => [
    row.id, row.label || "", row.source,
    ...row.turns.flatMap((turn) => turn.parts.filter((part) => typeof part === "string")),
    row.chosen ? textOf(row.chosen) : "", row.rejected ? textOf(row.rejected) : "",
    ...Object.values(row.meta),
  ].join("\n").toLowerCase();

  const cardOf = (row) => {
    const photos = make("div", "photos");
    row.images.slice(0, SHOWN_PHOTOS).forEach((image, index) => {
      const figure = make("figure", "", picture(row, index));
      if (row.images.length > 1) figure.append(make("span", "tag-n", String(index + 1)));
      if (index === SHOWN_PHOTOS - 1 && row.images.length > SHOWN_PHOTOS) {
        figure.append(make("span", "more", `+${row.images.length - SHOWN_PHOTOS}`));
      }
      photos.append(figure);
    });
    const id = make("span", "id", isolated(row.id));
    id.title = row.id;
    const foot = make("div", "foot", id);
    if (row.label !== null) foot.append(make("span", "chip label", isolated(row.label)));
    const card = make("article", "card");
    card.tabIndex = -1;
    card.setAttribute("aria-label", `Row ${row.number + 1}, ${row.id}, ${plural(row.images.length, "image")}`);
    if (row.images.length) card.append(photos);
    card.append(make("div", "body", ...conversation(row)), foot);
    return card;
  };

  const list = find("cards");
  if (data.kind === "preference") list.classList.add("pairs-of");
  const entries = data.rows.map((row) => {
    const card = cardOf(row);
    const item = make("li", "", card);
    list.append(item);
    return { row, card, item, words: wordsOf(row) };
  });
  let visible = entries;
  let current = 0;

  // Filters: only those that tell rows apart
  const counted = (values) => {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  };
  const filters = [];
  const addFilter = (name, all, options, fits) => {
    if (options.length < 2) return;
    const select = make("select");
    select.setAttribute("aria-label", name);
    select.id = `filter-${name.replace(/ /g, "-")}`;
    select.append(new Option(all, ""));
    options.forEach(([text], index) => select.append(new Option(text, String(index))));
    select.addEventListener("change", apply);
    find("filters").append(select);
    filters.push({ select, fits: (row) => select.value === "" || fits(row, options[Number(select.value)][1]) });
  };
  const addChoice = (name, all, value, shown = (x) => x) => {
    const counts = counted(data.rows.map(value));
    addFilter(name, all, counts.map(([key, count]) => [`${shown(key)} (${grouped(count)})`, key]),
      (row, key) => value(row) === key);
  };
  const addLengths = () => {
    const lengths = data.rows.map((row) => row.characters).sort((a, b) => a - b);
    const at = (share) => lengths[Math.min(lengths.length - 1, Math.floor(share * lengths.length))];
    const cuts = [...new Set([at(0.25), at(0.5), at(0.75)])].filter((cut) => cut > lengths[0]);
    if (!lengths.length || !cuts.length) return;
    const ranges = [-1, ...cuts].map((low, index) => [low, index < cuts.length ? cuts[index] : Infinity]);
    const words = ([low, high]) => low < 0 ? `under ${grouped(high)} characters`
      : high === Infinity ? `${grouped(low)} characters or more` : `${grouped(low)} to ${grouped(high - 1)} characters`;
    addFilter("length", "any length", ranges.map((range) => [words(range), range]),
      (row, [low, high]) => row.characters >= low && row.characters < high);
  };
  addChoice("label", "all labels", (row) => row.label, (label) => label === null ? "no label" : label);
  addChoice("source", "all sources", (row) => row.source);
  addChoice("licence", "all licences", (row) => row.licence);
  addChoice("number of images", "any number of images", (row) => row.images.length, (n) => plural(n, "image"));
  addLengths();

  const search = find("search");
  function apply() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = [];
    for (const entry of entries) {
      const fits = wanted.every((word) => entry.words.includes(word)) && filters.every((one) => one.fits(entry.row));
      entry.item.hidden = !fits;
      if (fits) visible.push(entry);
    }
    for (const { select } of filters) select.classList.toggle("on", select.value !== "");
    const narrowed = visible.length < entries.length;
    find("count").textContent = narrowed ? `${grouped(visible.length)} of ${plural(entries.length, "row")} fit`
      : plural(entries.length, "row");
    find("clear").hidden = !narrowed;
    find("empty").hidden = visible.length > 0;
    point(0);
  }
  const clear = () => {
    search.value = "";
    for (const { select } of filters) select.value = "";
    apply();
    search.focus();
  };
  search.addEventListener("input", apply);
  find("clear").addEventListener("click", clear);
  find("clear-empty").addEventListener("click", clear);

  // One card at a time can be reached by Tab; j, k and the arrows move between them.
  function point(index) {
    if (entries[0]) for (const entry of entries) entry.card.tabIndex = -1;
    current = Math.max(0, Math.min(index, visible.length - 1));
    if (visible.length) visible[current].card.tabIndex = 0;
  }
  const go = (index) => {
    if (!visible.length) return;
    point(index);
    visible[current].card.focus({ preventScroll: true });
    visible[current].card.scrollIntoView({ block: "nearest" });
  };
  list.addEventListener("focusin", (event) => {
    const index = visible.findIndex((entry) => entry.card === event.target);
    if (index >= 0) point(index);
  });
  const columns = () => {
    if (visible.length < 2) return 1;
    const top = visible[0].item.offsetTop;
    const below = visible.findIndex((entry) => entry.item.offsetTop > top);
    return below < 0 ? visible.length : below;
  };

  // Large view
  const large = find("large");
  const dlist = (pairs) => {
    const element = make("dl", "pairs");
    for (const [name, value] of pairs) element.append(make("dt", "", isolated(name)), make("dd", "", isolated(value)));
    return element;
  };
  const show = (index) => {
    if (!visible.length) return;
    point(index);
    const row = visible[current].row;
    find("large-title").replaceChildren(isolated(row.id));
    const photos = make("div", "large-photos");
    row.images.forEach((image, at) => {
      const size = `image ${at + 1} · ${image.width} × ${image.height}`;
      photos.append(make("figure", "", picture(row, at, false),
        make("figcaption", "", image.path ? `${size} · ` : size, image.path ? isolated(image.path) : null)));
    });
    const facts = [
      ["row", `${grouped(row.number + 1)} of ${grouped(data.total)}`], ["source", row.source], ["licence", row.licence],
      ...(row.label === null ? [] : [["label", row.label]]),
      ["text", plural(row.characters, "character")],
      ...Object.entries(row.origin).map(([name, value]) => [name === "row" ? "raw row" : name, value]),
      ...Object.entries(row.meta),
    ];
    const text = make("div", "large-text", ...conversation(row), dlist(facts));
    find("large-body").replaceChildren(...(row.images.length ? [photos, text] : [text]));
    find("previous").disabled = current === 0;
    find("next").disabled = current === visible.length - 1;
    if (!large.open) {
      large.showModal();
      large.focus();
    }
    large.scrollTop = 0;
  };
  list.addEventListener("click", (event) => {
    if (String(getSelection())) return;
    const card = event.target.closest(".card");
    const index = visible.findIndex((entry) => entry.card === card);
    if (index >= 0) show(index);
  });
  find("previous").addEventListener("click", () => show(current - 1));
  find("next").addEventListener("click", () => show(current + 1));
  find("close").addEventListener("click", () => large.close());
  large.addEventListener("close", () => go(current));
  for (const dialog of [large, find("keys")]) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  find("help").addEventListener("click", () => find("keys").showModal());
  find("close-keys").addEventListener("click", () => find("keys").close());

  // Rejects
  const rejectList = find("reject-list");
  if (rejectList) {
    const items = data.rejects.map((reject) => {
      const head = make("div", "", make("span", "chip reject-reason", reject.reason), " ", isolated(reject.id));
      const what = make("div", "what", head, make("p", "why", reject.why || null));
      if (reject.detail && reject.detail !== reject.why) what.append(make("p", "", make("code", "", reject.detail)));
      if (reject.place) what.append(make("p", "soft small", isolated(reject.place)));
      if (reject.raw) {
        what.append(make("details", "", make("summary", "", "raw row"), make("pre", "", reject.raw)));
      }
      const item = make("li", "reject", what);
      if (reject.thumbs.length) {
        const thumbs = make("div", "thumbs");
        reject.thumbs.slice(0, 4).forEach((thumb, index) => {
          const image = make("img");
          image.src = data.pictures[thumb];
          image.alt = `Image ${index + 1} of the ${rejectList.dataset.word} row ${reject.id}`;
          image.loading = "lazy";
          thumbs.append(image);
        });
        item.append(thumbs);
      }
      rejectList.append(item);
      return { reject, item, words: `${reject.id}\n${reject.place}\n${reject.reason}\n${reject.detail}`.toLowerCase() };
    });
    const buttons = [...find("reasons").querySelectorAll("button")];
    let reason = "";
    const refresh = () => {
      const wanted = find("reject-search").value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const { reject, item, words } of items) {
        const fits = (!reason || reject.reason === reason) && wanted.every((word) => words.includes(word));
        item.hidden = !fits;
        count += fits;
      }
      find("reject-count").textContent = `${plural(count, `${rejectList.dataset.word} row`)} shown`;
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        reason = button.dataset.reason;
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        refresh();
      });
    }
    find("reject-search").addEventListener("input", refresh);
    refresh();
  }

  // Tabs
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const open = (tab, focus = false) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      find(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    const name = tab.getAttribute("aria-controls");
    history.replaceState(null, "", name === "rows" ? location.pathname : `#${name}`);
    scrollTo(0, 0);
    if (focus) tab.focus();
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.stopPropagation();
      open(tabs[(index + step + tabs.length) % tabs.length], true);
    });
  });
  const named = tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);

  // Keys
  const steps = () => ({
    j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: large.open ? 0 : columns(), ArrowUp: large.open ? 0 : -columns(),
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing) {
      if (event.target === search && (event.key === "Enter" || event.key === "ArrowDown")) {
        event.preventDefault();
        go(0);
      }
      return;
    }
    if (find("keys").open) return;
    if (event.key === "?") return find("keys").showModal();
    const rowsShown = !find("rows").hidden;
    if (!large.open && /^[1-4]$/.test(event.key)) return open(tabs[Number(event.key) - 1], true);
    if (!large.open && event.key === "/") {
      event.preventDefault();
      const box = find("rejects").hidden ? search : find("reject-search") || search;
      if (box === search) open(tabs[0]);
      box.focus();
      return box.select();
    }
    if (!rowsShown) return;
    const step = steps()[event.key];
    if (step) {
      event.preventDefault();
      if (large.open) return show(Math.max(0, Math.min(current + step, visible.length - 1)));
      const inside = document.activeElement && document.activeElement.classList.contains("card");
      return go(inside ? current + step : current);
    }
    if (event.key === "Enter" && !large.open && !event.target.closest("button")) {
      event.preventDefault();
      show(current);
    }
  });

  apply();
  if (named) open(named);
})();
