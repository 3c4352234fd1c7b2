// The page of a comparison: every answer that changed between two runs.
const KINDS = {
  lost: "right → wrong", won: "wrong → right", less: "invents less", more: "invents more", reworded: "another text",
};
const several = data.pairs.length > 1;
const nameOf = (pair) => data.pairs[pair].map((run) => data.runs[run]).join(" → ");
const changes = data.changes.map(([at, pair, kind]) => {
  const item = data.items[at];
  const [one, other] = data.pairs[pair].map((run) => item.answers[run]);
  const id = several ? `${item.id}~${pair}` : item.id;
  const long = kind !== "lost" && kind !== "won";
  return { id, item, pair, kind, one, other, long, state: { less: "won", more: "lost", reworded: "" }[kind] ?? kind };
});
const inventedIn = (said) => (said.detail && said.detail.hallucinated ? said.detail.hallucinated.length : 0);
const ofItem = (filter) => ({ ...filter, values: (change) => filter.values(change.item) });

const filters = [
  { name: "change", all: "all changes", keys: Object.keys(KINDS), shown: (key) => KINDS[key], values: (change) => [change.kind] },
  { name: "pair", all: "all pairs", keys: data.pairs.map((_, at) => String(at)), shown: nameOf, values: (change) => [String(change.pair)] },
  ofItem(groupFilter),
  ...facetFilters(data.items).map(ofItem),
  { name: "truth", all: "any truth", values: ({ item }) => (typeof item.truth === "string" && item.truth.length <= 60 ? [item.truth] : []) },
];
const moved = (change) => {
  const [a, b] = [change.one, change.other].map((said) => said.detail && said.detail.probabilities);
  if (!a || !b) return undefined;
  return -Math.max(...Object.keys(a).map((word) => Math.abs(a[word] - (b[word] ?? 0))));
};
const orders = [
  { name: "listed", words: "by kind" },
  { name: "moved", words: "most moved first", key: moved },
  { name: "worse", words: "most more invented first", key: (change) => (change.long ? inventedIn(change.one) - inventedIn(change.other) : undefined) },
  { name: "better", words: "most less invented first", key: (change) => (change.long ? inventedIn(change.other) - inventedIn(change.one) : undefined) },
];
const summary = (visible) => {
  const counts = {};
  for (const change of visible) counts[change.kind] = (counts[change.kind] || 0) + 1;
  const parts = Object.keys(KINDS).filter((kind) => counts[kind]).map((kind) => `${grouped(counts[kind])} ${KINDS[kind]}`);
  return parts.length ? ` · ${parts.join(" · ")}` : "";
};

const rowOf = (change) => {
  const { item, one, other, pair } = change;
  const about = aboutOf(item);
  if (several) about.push(nameOf(pair));
  const text = change.long;
  const names = data.pairs[pair].map((run) => data.runs[run]);
  const versus = make("span", "versus");
  [[names[0], one], [names[1], other]].forEach(([name, said]) => {
    const words = text ? make("span", "said-line", isolated((said.said || "").trim().slice(0, 300) || "(empty)")) : saidOf(said, kindOf(said.state));
    versus.append(make("span", "who", isolated(name)), words,
      make("span", "", text && inventedIn(said) ? tag(`${inventedIn(said)} invented`, "bad") : null));
  });
  const truth = text ? null : make("span", "tag", isolated(textOf(item.truth).slice(0, 80) || "–"));
  return [
    thumbOf(item),
    make("span", "what", make("span", "q", isolated(questionOf(item).slice(0, 300))), make("span", "about", isolated(about.join(" · ")))),
    make("span", "truth", truth),
    versus,
  ];
};

// Which words of two texts are not common to both: longest common subsequence.
const differing = (a, b) => {
  const [left, right] = [a, b].map((text) => wordsOf(text).filter((_, at) => at % 2).map((word) => word.toLowerCase()));
  if (left.length * right.length > 4e6) return [new Set(), new Set()];
  const width = right.length + 1;
  const table = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      table[i * width + j] = left[i] === right[j] ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  const [gone, come] = [new Set(left.keys()), new Set(right.keys())];
  for (let i = 0, j = 0; i < left.length && j < right.length;) {
    if (left[i] === right[j]) { gone.delete(i); come.delete(j); i += 1; j += 1; }
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return [gone, come];
};

const openChange = (change) => {
  const { item, pair } = change;
  const [gone, come] = differing(change.one.said || "", change.other.said || "");
  const runs = make("div", "runs");
  item.answers.forEach((said, run) => {
    const inPair = data.pairs[pair].indexOf(run);
    const chip = said && said.state !== "text" ? make("span", `tag ${kindOf(said.state)}`, STATES[said.state]) : null;
    const differs = inPair === 0 ? gone : inPair === 1 ? come : new Set();
    const body = said ? [...answerOf(said, differs), ...detailOf(said.detail)] : [make("p", "soft", "not asked")];
    runs.append(make("div", inPair < 0 ? "aside" : "", make("h3", "", isolated(data.runs[run]), " ", chip), ...body));
  });
  const text = make("div", "large-text", ...askedOf(item), ...truthOf(item), make("h3", "", KINDS[change.kind], several ? `: ${nameOf(pair)}` : ""), runs, factsOf(item));
  return [[isolated(questionOf(item).slice(0, 160))], [photosOf(item), text]];
};

gallery({
  entries: changes, noun: "change", filters, orders, row: rowOf, open: openChange, summary,
  words: ({ item }) => [haystack(item), ...item.answers.map((said) => (said ? `${said.said ?? ""}\n${(said.detail && said.detail.hallucinated) || ""}` : ""))].join("\n"),
});
