// The page of one evaluation: its items.
const items = data.items;
const byImage = new Map();
for (const item of items) {
  for (const place of item.images || []) {
    if (!byImage.has(place)) byImage.set(place, []);
    byImage.get(place).push(item);
  }
}

for (const item of items) item.long = item.state === "text";

const single = (value) => (typeof value === "string" && value.length <= 60 ? [value] : []);
const inventedBy = (item) => (item.detail && item.detail.hallucinated ? item.detail.hallucinated.length : undefined);
const filters = [
  {
    name: "state", all: "right and wrong", keys: ["right", "wrong", "unread", "text"], shown: (key) => STATES[key],
    values: (item) => [item.state],
  },
  groupFilter,
  ...facetFilters(items),
  { name: "truth", all: "any truth", values: (item) => single(item.truth) },
  { name: "answer", all: "any answer", values: (item) => single(item.read) },
  {
    name: "invents", all: "invents or not", keys: ["nothing", "something"], shown: (key) => `invents ${key}`,
    values: (item) => (inventedBy(item) === undefined ? [] : [inventedBy(item) ? "something" : "nothing"]),
  },
];
const rank = { wrong: 0, unread: 1, text: 2, right: 3 };
const judgedAny = items.some((item) => item.state !== "text");
const orders = [
  { name: "listed", words: "benchmark order" },
  { name: "wrong", words: "wrong ones first", key: (item) => (judgedAny ? rank[item.state] : undefined) },
  { name: "sure", words: "surest first", key: (item) => (marginOf(item) === undefined ? undefined : -marginOf(item)) },
  { name: "unsure", words: "least sure first", key: marginOf },
  { name: "invents", words: "most invented first", key: (item) => (inventedBy(item) === undefined ? undefined : -inventedBy(item)) },
  { name: "long", words: "longest answer first", key: (item) => -(item.cut || (item.said || "").length) },
  { name: "short", words: "shortest answer first", key: (item) => item.cut || (item.said || "").length },
];

const summary = (visible) => {
  const counts = { right: 0, wrong: 0, unread: 0, text: 0 };
  for (const item of visible) counts[item.state] += 1;
  const judged = visible.length - counts.text;
  const parts = ["right", "wrong", "unread"].filter((state) => counts[state]).map((state) => `${grouped(counts[state])} ${STATES[state]}`);
  if (judged) parts.push(`${percent(counts.right / judged)} right`);
  if (counts.text && judged) parts.push(plural(counts.text, "text"));
  return parts.length ? ` · ${parts.join(" · ")}` : "";
};

const rowOf = (item) => {
  const { long } = item;
  const answer = long ? make("span", "said-text", item.said && item.said.trim() ? isolated(item.said.slice(0, 300)) : "(empty)") : saidOf(item, kindOf(item.state));
  const invented = inventedBy(item);
  return [
    thumbOf(item),
    make("span", "what", make("span", "q", isolated(questionOf(item).slice(0, 300))), make("span", "about", isolated(aboutOf(item).join(" · ")))),
    make("span", "truth", long ? null : make("span", "tag", isolated(textOf(item.truth).slice(0, 80) || "–"))),
    make("span", "said", answer, invented ? tag(`${invented} invented`, "bad") : null),
  ];
};

const others = (item) => {
  const same = (item.images || []).length ? byImage.get(item.images[0]).filter((other) => other !== item) : [];
  if (!same.length) return [];
  const list = make("ul", "others");
  for (const other of same.slice(0, 40)) {
    list.append(make("li", other.state, named(make("a", "", isolated(questionOf(other).slice(0, 200))), { href: `#id=${encodeURIComponent(other.id)}` }),
      " ", other.state === "text" ? null : saidOf(other, kindOf(other.state))));
  }
  const more = same.length > 40 ? make("p", "soft small", `and ${grouped(same.length - 40)} more`) : null;
  return [make("h3", "", `on the same image (${grouped(same.length)})`), list, more];
};

const openItem = (item) => {
  const chip = item.state === "text" ? null : make("span", `tag ${kindOf(item.state)}`, STATES[item.state]);
  const text = make("div", "large-text",
    ...askedOf(item), ...truthOf(item),
    make("h3", "", "answer ", chip), ...answerOf(item),
    ...detailOf(item.detail), ...others(item), factsOf(item));
  return [[isolated(questionOf(item).slice(0, 160))], [photosOf(item), text]];
};

const shownItems = gallery({ entries: items, noun: "item", words: haystack, filters, orders, row: rowOf, open: openItem, summary });

// Cells of a confusion matrix open what they count, where items can be told apart by truth and answer.
for (const cell of document.querySelectorAll(".matrix .cell")) {
  const { row, column } = cell.dataset;
  const [truth, answer] = [shownItems.filter("truth"), shownItems.filter("answer")];
  if (!truth || !answer || !truth.has(row) || !answer.has(column)) continue;
  cell.classList.add("opens");
  cell.addEventListener("click", () => {
    location.hash = String(new URLSearchParams({ view: "items", truth: row, answer: column }));
  });
}

// Names in tables open the items they stand for, where a column is one that items can be filtered by.
const FILTERED = { "": "truth", true: "truth", class: "truth", said: "answer" };
for (const table of document.querySelectorAll("#overview table.sortable:not(.board)")) {
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const word = head.textContent.trim().toLowerCase();
    const name = FILTERED[word] || word;
    const filter = name === "id" ? { has: shownItems.has } : shownItems.filter(name);
    if (!filter) return;
    for (const row of table.tBodies[0].rows) {
      const shown = row.cells[at].textContent;
      const value = (name === "group" && Object.keys(data.titles).find((group) => data.titles[group] === shown)) || shown;
      if (!filter.has(value)) continue;
      const link = make("a", "", ...row.cells[at].childNodes);
      link.href = `#${new URLSearchParams({ [name]: value })}`;
      row.cells[at].replaceChildren(link);
    }
  });
}
