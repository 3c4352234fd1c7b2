// What an item and an answer look like: pictures, questions, truths, answers, and what explains them.
const STATES = { right: "right", wrong: "wrong", unread: "not readable", text: "text" };

const pictureOf = (place, lazy) => {
  const picture = data.pictures[place];
  const missing = (why) => {
    const box = make("span", "none", lazy ? "" : why);
    box.title = `${picture.name}: ${why}`;
    return named(box, { role: "img", "aria-label": `no picture: ${why}` });
  };
  if (!picture.url) return missing(picture.why);
  const element = make("img");
  element.alt = picture.name;
  element.decoding = "async";
  if (lazy) element.loading = "lazy";
  element.addEventListener("error", () => {
    element.replaceWith(missing(`the folder ${picture.url.split("/")[0]}/ with its pictures is not beside this page`));
  }, { once: true });
  element.src = picture.url;
  return element;
};
const photosOf = (item) => {
  const photos = make("div", "large-photos");
  for (const place of item.images || []) {
    const name = data.pictures[place].name;
    const shown = /^[0-9a-f]{64}$/.test(name) ? `${name.slice(0, 16)}…` : name;
    photos.append(make("figure", "", pictureOf(place, false), make("figcaption", "", isolated(shown))));
  }
  if (!photos.children.length) photos.append(make("span", "none", "this item has no image"));
  return photos;
};
const thumbOf = (item) => {
  const box = make("span", "thumb");
  if (item.images) box.append(pictureOf(item.images[0], true));
  if (item.images && item.images.length > 1) box.append(make("span", "more", `${item.images.length}`));
  return box;
};

const numberOf = (value) => (Number.isInteger(value) ? grouped(value) : Math.abs(value) >= 1000 ? value.toFixed(1) : String(Number(value.toPrecision(4))));
const textOf = (value) => (typeof value === "string" ? value : typeof value === "number" ? numberOf(value) : Array.isArray(value)
  ? value.map(textOf).join(" · ") : value === null || value === undefined ? "" : typeof value === "object"
    ? Object.entries(value).map(([name, inner]) => `${name}: ${textOf(inner)}`).join("; ") : String(value));
const questionOf = (item) => item.prompt || (item.turns ? item.turns[item.turns.length - 1][1] : "") || String(item.id);
const groupsOf = (item) => data.groups[item.group];
// The narrowest group says most about an item.
const groupSizes = new Map();
for (const item of data.items) for (const group of groupsOf(item)) groupSizes.set(group, (groupSizes.get(group) || 0) + 1);
const narrowest = data.groups.map((groups) => groups.reduce((best, group) => (groupSizes.get(group) < groupSizes.get(best) ? group : best), groups[0]));
const titleOf = (group) => data.titles[group] || group;

const aboutOf = (item) => {
  const group = titleOf(narrowest[item.group]);
  const facets = Object.values(item.facets || {}).filter((value) => value.toLowerCase() !== group.toLowerCase());
  return [String(item.id), group, ...facets.slice(0, 3)];
};

const tallied = (words) => {
  const counts = new Map();
  for (const word of words) counts.set(textOf(word), (counts.get(textOf(word)) || 0) + 1);
  return [...counts].map(([word, count]) => (count > 1 ? `${word} ×${count}` : word));
};
const tags = (words, kind = "") => make("span", "tags", ...tallied(words).map((word) => make("span", `tag ${kind}`, isolated(word))));
const tag = (text, kind = "") => make("span", `tag ${kind}`, isolated(text));
const kindOf = (state) => ({ right: "good", wrong: "bad", unread: "bad" }[state] || "");

// Words stand at the odd places.
const wordsOf = (text) => text.split(/([\p{L}\p{M}\p{N}'-]+)/u);

// A text with the words that are not in the picture marked, in green those that are, and those that another lacks.
const markedText = (text, detail, differs = new Set()) => {
  const bad = new Set((detail.hallucinated || []).map((word) => textOf(word).replace(/ ×\d+$/, "").toLowerCase()));
  const good = new Set((detail.nouns || []).map((word) => textOf(word).replace(/ ×\d+$/, "").toLowerCase()));
  const box = make("div", "text");
  box.dir = "auto";
  const forms = (word) => [word, word.replace(/s$/, ""), word.replace(/es$/, ""), word.replace(/ies$/, "y"),
    word.replace(/ves$/, "f"), word.replace(/ves$/, "fe"), word.replace(/men$/, "man")];
  wordsOf(text).forEach((piece, at) => {
    const found = forms(piece.toLowerCase());
    const kind = at % 2 === 0 ? "" : found.some((word) => bad.has(word)) ? "bad" : found.some((word) => good.has(word)) ? "good" : "";
    const other = at % 2 && differs.has((at - 1) / 2) ? "differs" : "";
    box.append(kind || other ? make("mark", `${kind} ${other}`.trim(), piece) : piece);
  });
  return box;
};
// The whole answer, and how it was read where that is not the same.
const answerOf = (said, differs) => {
  if (said.said === undefined) return [tag("no answer", "bad")];
  const text = spokenOf(said);
  const read = said.read !== undefined && said.read !== text ? make("p", "soft small", "read as ", tag(said.read)) : null;
  return [make("div", `answer ${kindOf(said.state)}`, markedText(text.trim() ? text : "(empty)", said.detail || {}, differs), cutNote(said)), read];
};
const cutNote = (said) => (said.cut ? make("p", "soft small", `Shortened: the answer has ${plural(said.cut, "character")}; the whole of it stands in scores.jsonl.`) : null);

// Of an answer that was ranked, the text is its place among the choices; what was read says which one that is.
const spokenOf = (said) => (said.detail && said.detail.log_likelihoods && said.read !== undefined ? said.read : said.said);
const saidOf = (said, kind = "") => {
  if (said.said === undefined || said.said === null) return tag("no answer", "bad");
  const text = spokenOf(said);
  if (!text.trim()) return tag("(empty)", kind);
  return tag(text.length > 160 ? `${text.slice(0, 160)}…` : text, kind);
};

// Probabilities as bars
const probabilities = (chances) => {
  const box = make("div", "chances");
  for (const [word, chance] of Object.entries(chances)) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    named(bar, { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" });
    for (const [name, width] of [["track", 100], ["fill", 100 * Math.min(1, Math.max(0, chance))]]) {
      const part = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      named(part, { class: name, width, height: 8 });
      bar.append(part);
    }
    box.append(make("span", "", isolated(word)), bar, make("span", "num", Number(chance).toFixed(3)));
  }
  return box;
};
const marginOf = (said) => {
  const chances = said.detail && said.detail.probabilities;
  if (!chances) return undefined;
  const values = Object.values(chances).map(Number).sort((a, b) => b - a);
  const total = values.reduce((sum, value) => sum + value, 0);
  return total > 0 && values.length > 1 ? (values[0] - values[1]) / total : undefined;
};

const fieldTable = (fields) => {
  const body = make("tbody");
  for (const [name, value] of Object.entries(fields)) {
    const [truth, said] = Array.isArray(value) ? value : [value, undefined];
    const same = textOf(truth).trim().toLowerCase() === textOf(said).trim().toLowerCase();
    body.append(make("tr", same ? "good" : "bad", make("td", "", isolated(name)), make("td", "", isolated(textOf(truth))),
      make("td", "", said === undefined || said === null ? "–" : isolated(textOf(said)))));
  }
  return make("table", "fields", make("thead", "", make("tr", "", make("th", "", "field"), make("th", "", "truth"), make("th", "", "answer"))), body);
};
// What was read from a text is marked in it already.
const MARKED = new Set(["nouns"]);
const WORDED = { hallucinated: "invented", missed: "not mentioned", log_likelihoods: "log-likelihoods" };
const detailOf = (detail) => {
  const nodes = [];
  for (const [name, value] of Object.entries(detail || {})) {
    if (MARKED.has(name)) continue;
    const head = make("h3", "", (WORDED[name] || name).replaceAll("_", " "));
    const isMap = value !== null && typeof value === "object" && !Array.isArray(value);
    if (name === "probabilities" && isMap) nodes.push(head, probabilities(value));
    else if (isMap && Object.values(value).every((one) => Array.isArray(one) && one.length === 2)) nodes.push(head, fieldTable(value));
    else if (Array.isArray(value)) nodes.push(head, value.length ? tags(value, name === "hallucinated" ? "bad" : "") : make("p", "soft", "none"));
    else if (isMap) nodes.push(head, pairs(Object.entries(value).map(([key, inner]) => [key, textOf(inner)])));
    else nodes.push(head, make("p", "text", isolated(textOf(value))));
  }
  return nodes;
};
const pairs = (entries) => {
  const list = make("dl", "pairs");
  for (const [name, value] of entries) list.append(make("dt", "", isolated(name)), make("dd", "", isolated(value)));
  return list;
};

const askedOf = (item) => {
  const turns = item.turns || [["", questionOf(item)]];
  return turns.map(([role, text]) => {
    const said = make("div", "text", isolated(text));
    said.dir = "auto";
    return make("div", `turn ${role === "assistant" ? "assistant" : ""}`, role ? make("h3", "", role) : null, said);
  });
};
const truthOf = (item) => {
  const truth = item.truth;
  if (truth === undefined || truth === null) return [];
  const head = make("h3", "", "truth");
  if (Array.isArray(truth)) return [head, tags(truth)];
  if (typeof truth === "object") {
    return Object.entries(truth).flatMap(([name, value]) => [make("h3", "", name === "hallu" ? "often invented here" : name),
      Array.isArray(value) ? tags(value) : make("p", "text", isolated(textOf(value)))]);
  }
  const text = textOf(truth);
  return [head, text.length > 80 ? make("p", "text", isolated(text)) : tag(text)];
};
const factsOf = (item) => pairs([
  ["item", String(item.id)], ["in", groupsOf(item).map(titleOf).join(" · ")],
  ...Object.entries(item.facets || {}),
]);

// Filters that items of every page have
const TAKEN = new Set(["answer", "change", "group", "id", "invents", "order", "pair", "q", "state", "truth", "view"]);
const facetFilters = (items) => {
  const names = [...new Set(items.flatMap((item) => Object.keys(item.facets || {})))];
  return names.map((name) => ({
    name: TAKEN.has(name) ? `facet ${name}` : name, all: `any ${name}`, values: (item) => (item.facets && name in item.facets ? [item.facets[name]] : []),
  }));
};
const groupFilter = {
  name: "group", all: "all groups", keys: Object.keys(data.titles), shown: titleOf, values: groupsOf,
};
const haystack = (item) => [
  item.id, item.prompt, ...(item.turns || []).map(([, text]) => text), textOf(item.truth), item.said, item.read,
  ...(item.images || []).map((place) => data.pictures[place].name), ...Object.values(item.facets || {}),
  ...((item.detail && item.detail.hallucinated) || []),
].filter((text) => text !== undefined && text !== null).join("\n");
