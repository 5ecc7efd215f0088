"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const compared = data.models.some((model) => model.heads.some((head) => head.change));
  const failing = data.models.some((model) => model.heads.some((head) => head.failed));
  const state = { text: "", status: "all", labels: new Set(), sort: "first", scale: "head" };
  const cards = [];
  const filled = new WeakSet();

  /* ---- small tools: text goes in as text, never as markup ---- */
  function make(tag, set = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(set)) {
      if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
      else if (name === "class") node.className = value;
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const words = (label) => label.replaceAll("_", " ");
  function show(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  }
  const brief = (value) => (value === null ? "–" : value.toFixed(2));
  const measure = (name) => data.measures.findIndex((entry) => entry.name === name);
  const scoreOf = (head) => head.scores.find((score) => score[0] === head.label);

  /* ---- colours: 254 levels between a few points ---- */
  function ramp(points) {
    const colours = points.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
    return (share) => {
      const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
      const low = Math.min(Math.floor(at), colours.length - 2);
      return colours[low].map((value, i) => value + (colours[low + 1][i] - value) * (at - low));
    };
  }
  const sequential = ramp(data.sequential);
  const diverging = ramp(data.diverging);

  function decode(map) {
    if (!map.bytes) map.bytes = Uint8Array.from(atob(map.codes), (letter) => letter.charCodeAt(0));
    return map;
  }
  const weight = (map, at) => (map.bytes[at] === 255 ? null : (map.bytes[at] / 254) * map.peak);

  /* What a heatmap shows: values (null: hidden), what its colours span, and how it is coloured. */
  function pictures(head) {
    const maps = head.maps.map(decode);
    const own = Math.max(...maps.map((map) => map.peak), 0);
    const span = state.scale === "head" ? own : 1;
    const views = maps.map((map) => ({ map, value: (at) => weight(map, at), colour: (v) => sequential(span ? v / span : 0) }));
    const [a, b] = maps;
    if (maps.length === 2 && a.rows === b.rows && a.columns === b.columns) {
      const change = (at) => (weight(a, at) === null && weight(b, at) === null ? null : (weight(b, at) || 0) - (weight(a, at) || 0));
      let most = 0;
      for (let at = 0; at < a.bytes.length; at += 1) most = Math.max(most, Math.abs(change(at)));
      const wide = state.scale === "head" ? most : 1;
      views.push({ map: a, value: change, colour: (v) => diverging(wide ? 0.5 + v / wide / 2 : 0.5), signed: true });
    }
    return views;
  }

  function paint(canvas, view) {
    const { rows, columns } = view.map;
    canvas.width = columns;
    canvas.height = rows;
    const image = new ImageData(columns, rows);
    for (let at = 0; at < rows * columns; at += 1) {
      const value = view.value(at);
      if (value === null) continue;
      image.data.set(view.colour(value), at * 4);
      image.data[at * 4 + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.dataset.drawn = "1";
  }

  /* ---- one card: a shell at once, its inside when it comes near the window ---- */
  function shell(head, model, number) {
    const place = number === 1 ? head.name : `${number}.${head.name}`;
    const look = data.labels[head.label];
    const score = scoreOf(head);
    const parameter = score && score[1] !== null ? ` (${score[1]})` : "";
    const was = head.change && head.change.label !== head.label
      ? make("span", { class: `tag ${data.labels[head.change.label].class}` }, words(head.change.label)) : null;
    const title = make("h3", {},
      make("a", { href: `#${place}`, title: "link to this head" }, head.name),
      was, was ? "→" : null,
      make("span", { class: `tag ${look.class}`, title: look.text }, words(head.label) + parameter),
      head.failed ? make("span", { class: "bad" }, head.change ? "changed" : "fails") : null,
      make("small", {}, model.layers[head.layer]));
    const card = make("article", { class: head.failed ? "card bad" : "card", id: place, tabindex: "-1" }, title);
    const found = [place, head.name, head.label, words(head.label), model.layers[head.layer],
      head.note, was ? head.change.label : ""].join(" ").toLowerCase();
    const entry = { card, head, model, number, found };
    cards.push(entry);
    return entry;
  }

  function fill(entry) {
    const { card, head, model } = entry;
    if (filled.has(card)) return;
    filled.add(card);
    const line = make("p", { class: "at" }, "");
    const maps = make("div", { class: "maps" }, ...pictures(head).map((view, i) => figure(entry, view, i, line)));
    const scores = make("ul", { class: "scores" }, make("li", {}, make("span", {}, "pattern", make("span", {}, "mass (chance)"))), ...head.scores.slice(0, 4).map((score) => bar(score, head)));
    card.append(make("div", { class: "look" }, head.maps.length ? maps : null, head.change ? null : scores));
    if (head.maps.length) card.append(line);
    if (!head.change) card.append(inBrief(head));
    if (head.change) card.append(changeLine(head));
    if (head.note) card.append(make("p", { class: "note" }, head.note));
    card.append(details("measures", measureTable(head, model)), details("all pattern scores", scoreTable(head)));
  }

  function figure(entry, view, i, line) {
    const { head, model } = entry;
    const canvas = make("canvas", { role: "img", tabindex: "0" });
    const name = view.signed ? "difference" : model.captions[i] || "";
    canvas.setAttribute("aria-label", `${head.name} ${words(head.label)} ${name}: heatmap, queries down, keys right; arrow keys read cells`);
    paint(canvas, view);
    canvas.style.aspectRatio = `${view.map.columns} / ${Math.max(view.map.rows, view.map.columns / 8)}`;
    let cell = [0, 0];
    const tell = () => { line.textContent = reading(view, cell, model); };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (offset, size, count) => Math.min(Math.max(Math.floor((offset / size) * count), 0), count - 1);
      cell = [at(event.clientY - box.top, box.height, view.map.rows), at(event.clientX - box.left, box.width, view.map.columns)];
      tell();
    });
    canvas.addEventListener("focus", tell);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      cell = [Math.min(Math.max(cell[0] + step[0], 0), view.map.rows - 1), Math.min(Math.max(cell[1] + step[1], 0), view.map.columns - 1)];
      tell();
    });
    return make("figure", {}, canvas, name ? make("figcaption", {}, name) : null);
  }

  /* "query 7 'fox' → key 3 'the': 0.41" */
  function reading(view, [row, column], model) {
    const value = view.value(row * view.map.columns + column);
    const [high, wide] = view.map.blocks;
    const place = (axis, start, size) => {
      const token = size === 1 && model.tokens && start < model.tokens.length ? ` '${model.tokens[start]}'` : "";
      return size === 1 ? `${axis} ${start}${token}` : `${axis} ${start} to ${start + size - 1}`;
    };
    const said = value === null ? "not visible" : view.signed && value > 0 ? `+${show(value)}` : show(value);
    return `${place("query", row * high, high)} → ${place("key", column * wide, wide)}: ${said}`;
  }

  function bar([pattern, parameter, mass, chance, lift], head) {
    const share = (value) => `${100 * Math.min(Math.max(value || 0, 0), 1)}%`;
    const name = words(pattern) + (parameter === null ? "" : ` (${parameter})`);
    return make("li", { title: `mass ${show(mass)}, chance ${show(chance)}, lift ${show(lift)}` },
      make("span", {}, make("span", { class: pattern === head.label ? "own" : "" }, name),
        make("span", { class: "value" }, `${brief(mass)} (${brief(chance)})`)),
      make("div", { class: "track" }, make("i", { style: { width: share(mass) } }), make("u", { style: { left: share(chance) } })));
  }

  function inBrief(head) {
    const said = [["normalized_entropy", "normalised entropy"], ["effective_keys", "effective keys"],
      ["sink_mass", "sink"], ["mean_distance", "mean distance"]].map(
      ([name, text]) => make("span", {}, `${text} `, make("b", {}, show(head.measures[measure(name)]))));
    return make("p", { class: "brief" }, ...said);
  }

  function changeLine(head) {
    const { mean, divergence } = head.change;
    const text = mean === null ? "no weights to compare: judged by its measures"
      : `moved ${show(mean)} of its attention (total variation); divergence ${show(divergence)} nats`;
    return make("p", { class: "at" }, text);
  }

  function details(title, ...children) {
    return make("details", {}, make("summary", {}, title), ...children);
  }

  function table(names, rows) {
    return make("div", { class: "scroll" }, make("table", { class: "numbers" },
      make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map(([name, ...cells]) => make("tr", {},
        make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)))))));
  }

  function measureTable(head, model) {
    const rows = data.measures.map((entry, i) => {
      const name = make("span", { title: entry.text }, words(entry.name));
      const unit = entry.unit === "share" ? "" : entry.unit;
      if (!head.change) return [name, show(head.measures[i]), unit];
      const [a, b] = [head.change.measures[i], head.measures[i]];
      return [name, show(a), show(b), a === null || b === null ? "–" : show(b - a), unit];
    });
    const [a, b] = model.captions.length === 2 ? model.captions : ["before", "now"];
    return table(head.change ? ["measure", a, b, "change", "unit"] : ["measure", "value", "unit"], rows);
  }

  function scoreTable(head) {
    return table(["pattern", "mass", "chance", "lift", "strength"], head.scores.map(
      ([pattern, parameter, ...numbers]) => [words(pattern) + (parameter === null ? "" : ` (${parameter})`), ...numbers.map(show)]));
  }

  /* ---- order, filter, scale ---- */
  const order = {
    first: (a, b) => b.head.failed - a.head.failed || (compared ? b.head.change.size - a.head.change.size : 0),
    layer: () => 0,
    lift: (a, b) => lift(b.head) - lift(a.head),
    margin: (a, b) => (b.head.margin ?? -1) - (a.head.margin ?? -1),
  };
  function lift(head) {
    const score = scoreOf(head);
    return score && score[4] !== null ? score[4] : -1;
  }
  function compare(a, b) {
    if (order[state.sort]) return order[state.sort](a, b);
    const at = measure(state.sort);
    return (b.head.measures[at] ?? -Infinity) - (a.head.measures[at] ?? -Infinity);
  }

  function arrange() {
    data.models.forEach((model, i) => {
      const mine = cards.filter((entry) => entry.number === i + 1);
      mine.sort((a, b) => compare(a, b) || a.place - b.place);
      document.querySelector(`#model-${i + 1} .cards`).append(...mine.map((entry) => entry.card));
    });
  }

  function wanted({ head, found }) {
    if (state.labels.size && !state.labels.has(head.label)) return false;
    if (state.status === "failing" && !head.failed) return false;
    if (state.status === "relabelled" && head.change.label === head.label) return false;
    return state.text.toLowerCase().split(/\s+/).every((word) => found.includes(word));
  }

  function filter() {
    let shown = 0;
    for (const entry of cards) {
      const keep = wanted(entry);
      entry.card.hidden = !keep;
      if (entry.link) entry.link.classList.toggle("out", !keep);
      shown += keep;
    }
    const count = document.getElementById("count");
    count.textContent = shown ? `${shown} of ${cards.length} heads` : "no head matches; Escape clears";
    for (const button of document.querySelectorAll(".legend button"))
      button.setAttribute("aria-pressed", String(state.labels.has(button.dataset.label)));
  }

  function clear() {
    state.text = "";
    state.status = "all";
    state.labels.clear();
    document.getElementById("find").value = "";
    const status = document.getElementById("status");
    if (status) status.value = "all";
    filter();
  }

  function redraw() {
    for (const { card, head } of cards) {
      if (!filled.has(card)) continue;
      const canvases = card.querySelectorAll("canvas");
      pictures(head).forEach((view, i) => paint(canvases[i], view));
    }
  }

  /* ---- the toolbar ---- */
  function choice(title, id, options, change) {
    const list = make("select", { id, on: { change: () => change(list.value) } },
      ...options.map(([value, text]) => make("option", { value }, text)));
    return make("label", {}, title, list);
  }

  function toolbar() {
    const find = make("input", { type: "search", id: "find", placeholder: "L5, induction, …  ( / )", on: {
      input: () => { state.text = find.value; filter(); } } });
    const statuses = [["all", "all"]];
    if (failing) statuses.push(["failing", compared ? "changed" : "failing"]);
    if (compared) statuses.push(["relabelled", "new label"]);
    const first = compared ? "changed first" : "failures, then layer";
    const sorts = [["first", first], ["layer", "layer"], ["lift", "lift"], ["margin", "margin"],
      ...data.measures.map((entry) => [entry.name, words(entry.name)])];
    document.getElementById("toolbar").append(
      make("label", {}, "Find", find),
      ...(statuses.length > 1 ? [choice("Show", "status", statuses, (value) => { state.status = value; filter(); })] : []),
      choice("Sort", "sort", sorts, (value) => { state.sort = value; arrange(); }),
      choice("Colours to", "scale", [["head", "each head's largest"], ["one", "1"]], (value) => { state.scale = value; redraw(); }),
      make("button", { type: "button", id: "theme", on: { click: theme } }, "Light / dark"),
      make("span", { id: "count", role: "status" }));
  }

  function theme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  function legends() {
    for (const item of document.querySelectorAll(".legend li")) {
      const label = item.dataset.label;
      const button = make("button", { type: "button", "data-label": label, title: data.labels[label].text, on: { click: () => {
        if (!state.labels.delete(label)) state.labels.add(label);
        filter();
      } } }, ...item.childNodes);
      item.append(button);
    }
  }

  /* In a head map one cell takes the tab key, arrows go on from there. */
  function maps() {
    document.querySelectorAll(".map.heads").forEach((map) => {
      const links = [...map.querySelectorAll("a")];
      links.forEach((link, i) => { link.tabIndex = i ? -1 : 0; });
      map.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        const cell = event.target.closest("td");
        if (!step || !cell) return;
        event.preventDefault();
        const row = map.tBodies[0].rows[cell.parentNode.rowIndex - 1 + step[0]];
        const next = row && row.cells[cell.cellIndex + step[1]];
        const link = next && next.querySelector("a");
        if (!link) return;
        event.target.tabIndex = -1;
        link.tabIndex = 0;
        link.focus();
      });
    });
  }

  /* ---- addresses: #L5H1 shows that head, whatever was filtered ---- */
  function visit() {
    const place = location.hash.slice(1);  // names of heads need no decoding
    const entry = cards.find((one) => one.card.id === place);
    document.querySelectorAll(".card.target").forEach((card) => card.classList.remove("target"));
    if (!entry) return;
    if (entry.card.hidden) clear();
    fill(entry);
    entry.card.classList.add("target");
    entry.card.scrollIntoView({ block: "center" });
    entry.card.focus({ preventScroll: true });
  }

  function keys(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      document.getElementById("find").focus();
    } else if (event.key === "Escape") clear();
  }

  function start() {
    if (!cards.length && !data.models.length) return;
    for (const row of document.querySelectorAll("tr[id]")) row.removeAttribute("id");
    const links = new Map([...document.querySelectorAll(".map.heads a")].map((link) => [link.hash.slice(1), link]));
    data.models.forEach((model, i) => model.heads.forEach((head, place) => {
      const entry = shell(head, model, i + 1);
      entry.place = place;
      entry.link = links.get(entry.card.id);
    }));
    for (const section of document.querySelectorAll(".cards")) section.classList.toggle("compared", compared);
    toolbar();
    legends();
    maps();
    arrange();
    filter();
    const near = new IntersectionObserver((seen) => {
      for (const one of seen) if (one.isIntersecting) {
        near.unobserve(one.target);
        fill(owner.get(one.target));
      }
    }, { rootMargin: "600px" });
    const owner = new Map(cards.map((entry) => [entry.card, entry]));
    for (const card of [...document.querySelectorAll(".card")].slice(0, 9)) fill(owner.get(card));
    for (const { card } of cards) near.observe(card);
    addEventListener("hashchange", visit);
    addEventListener("keydown", keys);
    addEventListener("beforeprint", () => cards.filter(({ card }) => !card.hidden).forEach(fill));
    visit();
  }
  start();
  document.documentElement.dataset.ready = "1";
})();
