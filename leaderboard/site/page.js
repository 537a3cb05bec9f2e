"use strict";
/* Sorts, filters, switches tiers and themes, and draws tooltips. Every table and figure is in the page without it. */
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const { tables, shown } = JSON.parse(one("#data").textContent);
  const controls = one("#controls");
  const nothing = "\u2013";
  const state = { drop: shown[0], l1: shown[1], family: "", name: "", table: "" };
  const tableOf = (element) => tables[Number(element.closest("section.table").id.slice(1))];

  /* ------------------------------------------------------------------------------------------- sorting */

  const number = (text) => parseFloat(text.replaceAll(",", ""));

  /* A column is one of numbers if every cell that has something begins with one. Missing cells come last. */
  function keysOf(rows, column) {
    const texts = rows.map((row) => (row.cells[column] ? row.cells[column].textContent.trim() : ""));
    const missing = (text) => text === "" || text === nothing;
    const numeric = texts.every((text) => missing(text) || !Number.isNaN(number(text)));
    return texts.map((text) => (missing(text) ? null : numeric ? number(text) : text.toLowerCase()));
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function sortBody(body, column, descending) {
    const head = all(":scope > tr.family", body);
    const rows = all(":scope > tr:not(.family)", body);
    const keys = keysOf(rows, column);
    const order = rows.map((_, i) => i).sort((i, j) => {
      if (keys[i] === null || keys[j] === null) return compare(keys[i], keys[j]);
      return descending ? compare(keys[j], keys[i]) : compare(keys[i], keys[j]);
    });
    body.replaceChildren(...head, ...order.map((i) => rows[i]));
  }

  function sortTable(table) {
    const cell = one("th[aria-sort]", table);
    if (!cell) return;
    for (const body of table.tBodies) sortBody(body, cell.cellIndex, cell.ariaSort === "descending");
  }

  function makeSortable(table) {
    const cells = all("thead th", table);
    for (const cell of cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const next = cell.ariaSort === "ascending" ? "descending" : "ascending";
        for (const other of cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", next);
        sortTable(table);
      });
    }
  }

  /* ------------------------------------------------------------------------------- filters and tiers */

  function wanted(data, defense, text) {
    const [name, family] = data.defenses[defense];
    const sameFamily = !state.family || family === state.family || family === "control";
    return sameFamily && `${name} ${text}`.toLowerCase().includes(state.name);
  }

  const settingsOf = (data, defense) => data.settings.filter((_, row) => data.rows[row][0] === Number(defense)).join(" ");

  const wantedRow = (data, row) => wanted(data, data.rows[row][0], data.settings[row]);

  function rank(table, data, tier) {
    const key = (defense, row) => (row === null ? `d${defense}` : `r${row}`);
    const places = new Map(tier.placed.map(([defense, row, ...rest]) => [key(defense, row), [defense, ...rest]]));
    const order = new Map([...places.keys()].map((name, i) => [name, i]));
    for (const body of table.tBodies) {
      const head = one("tr.family", body);
      const lines = all("tr:not(.family)", body).map((line) => {
        const name = key(line.dataset.defense, line.dataset.row ?? null);
        const place = places.get(name);
        const row = line.dataset.row;
        line.hidden = !place || !wanted(data, place[0], row === undefined ? "" : data.settings[row]);
        if (place) {
          line.cells[0].textContent = place[1] ?? nothing;
          line.cells[8].textContent = data.reasons[place[2]];
        }
        return [order.get(name) ?? Infinity, line];
      });
      lines.sort(([i], [j]) => (i === j ? 0 : i - j));
      head.hidden = lines.every(([, line]) => line.hidden);
      body.replaceChildren(head, ...lines.map(([, line]) => line));
    }
    sortTable(table);
  }

  function judge(table, tier) {
    for (const line of all("tbody tr", table)) {
      [line.cells[5].textContent, line.cells[6].textContent] = tier.attacks[line.dataset.column];
    }
    sortTable(table);
  }

  function nameTier(section) {
    const points = 100 * state.drop;
    for (const words of all("span.tier", section)) {
      words.textContent =
        `at most ${points} ${points === 1 ? "point" : "points"} of accuracy lost and mean L1 at most ${state.l1}`;
    }
  }

  function draw(chart, data, tier, within) {
    const cap = { drop: state.drop, l1: state.l1 }[chart.dataset.kind];
    const placed = new Set(tier.placed.map(([, row]) => row));
    for (const line of all(".cap", chart)) line.classList.toggle("on", Number(line.dataset.cap) === cap);
    for (const mark of all("[data-row]", chart)) {
      const row = Number(mark.dataset.row);
      const hide = !wantedRow(data, row) || (chart.dataset.kind === "defenses" && !placed.has(row));
      mark.toggleAttribute("hidden", hide);
      mark.classList.toggle("out", !within(row));
    }
    rove(chart);
  }

  function update() {
    for (const section of all("section.table")) {
      const data = tableOf(section);
      section.hidden = Boolean(state.table) && section.id !== state.table;
      const tier = data.tiers.find(({ drop, l1 }) => drop === state.drop && l1 === state.l1);
      const place = (caps, cap) => caps.filter((other) => other >= cap).length;
      const caps = ["drop", "l1"].map((kind) => [...new Set(data.tiers.map((each) => each[kind]))]);
      const least = [place(caps[0], state.drop), place(caps[1], state.l1)];
      const within = (row) => data.rows[row].slice(1).every((met, i) => met >= least[i]);
      nameTier(section);
      rank(one("table.ranking", section), data, tier);
      judge(one("table.attacks", section), tier);
      for (const row of all(".heat tbody tr", section)) row.hidden = !wantedRow(data, row.dataset.row);
      for (const part of all("details.card, .tiers tbody tr", section)) {
        part.hidden = !wanted(data, part.dataset.defense, settingsOf(data, part.dataset.defense));
      }
      for (const chart of all("svg.chart", section)) draw(chart, data, tier, within);
    }
    for (const board of all("section.board")) {
      board.hidden = all("section.table", board).every((section) => section.hidden);
    }
  }

  function read() {
    const form = new FormData(controls);
    state.drop = Number(form.get("drop"));
    state.l1 = Number(form.get("l1"));
    state.family = form.get("family");
    state.name = form.get("name").trim().toLowerCase();
    state.table = form.get("table") ?? "";
    update();
  }

  /* ----------------------------------------------------------------------------------------- tooltips */

  const tip = one("#tip");
  let lit = null;

  function show(mark, text, x, y) {
    if (lit) lit.classList.remove("on");
    lit = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    tip.textContent = text;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? y - height - 12 : y + 18}px`;
  }

  const marksOf = (chart) => all("circle, path.line", chart).filter((mark) => !mark.hasAttribute("hidden"));

  /* Where a mark is in the drawing's units: a circle's center, or the vertices of a line. */
  function vertices(mark) {
    if (mark.tagName === "circle") return [[Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))]];
    return mark.getAttribute("d").slice(1).split("L").map((pair) => pair.split(",").map(Number));
  }

  /* What a mark is, read from the tables that show the same. */
  function nameOf(mark) {
    const section = mark.closest("section.table");
    const text = (cell) => cell.textContent.trim();
    if (mark.dataset.column !== undefined) return text(one(`.attacks tr[data-column="${mark.dataset.column}"] th`, section));
    const [setting, lost, distance, ...shares] = one(`.heat tr[data-row="${mark.dataset.row}"]`, section).cells;
    const heads = one(".heat", section).tHead.rows[0].cells;
    const worst = shares.filter((cell) => cell.classList.contains("worst"));
    const attacks = worst.map((cell) => text(heads[cell.cellIndex])).join("; ");
    const name = attacks ? `${text(setting)} against ${attacks}` : text(setting);
    if (mark.dataset.read !== undefined) return name;
    const share = text(worst[0] ?? shares.find((cell) => text(cell) !== nothing));
    return `${name}\n\u03c3 ${share}, ${text(lost)} points lost, L1 ${text(distance)}`;
  }

  function describe(mark, vertex) {
    const name = nameOf(mark);
    if (mark.dataset.read === undefined) return name;
    const [queries, percent] = mark.dataset.read.split(" ")[vertex].split(":");
    return `${name}\n${Number(queries).toLocaleString("en")} queries: ${percent} %`;
  }

  function nearest(chart, event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    let best = { distance: 24 };
    for (const mark of marksOf(chart)) {
      vertices(mark).forEach(([x, y], vertex) => {
        const distance = Math.hypot(x - at.x, y - at.y);
        if (distance < best.distance) best = { distance, mark, vertex };
      });
    }
    return best;
  }

  function showAtEnd(mark) {
    const last = vertices(mark).length - 1;
    const [x, y] = vertices(mark)[last];
    const at = new DOMPoint(x, y).matrixTransform(mark.ownerSVGElement.getScreenCTM());
    const text = describe(mark, last);
    mark.setAttribute("aria-label", text);
    show(mark, text, at.x, at.y);
  }

  /* One stop of the tab key a figure; the arrows go on from there. */
  function rove(chart) {
    marksOf(chart).forEach((mark, i) => mark.setAttribute("tabindex", i ? "-1" : "0"));
  }

  function step(chart, event) {
    const marks = marksOf(chart);
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const from = marks.indexOf(document.activeElement);
    if (event.key === "Escape") show(null);
    if (event.key === "Enter") open(document.activeElement);
    if (!by || from < 0) return;
    event.preventDefault();
    marks[(from + by + marks.length) % marks.length].focus();
  }

  function open(mark) {
    if (!mark || mark.dataset.row === undefined) return;
    location.hash = `${mark.closest("section.table").id}-d${tableOf(mark).rows[mark.dataset.row][0]}`;
  }

  function makeLively(chart) {
    for (const mark of all("circle, path.line", chart)) mark.setAttribute("role", "img");
    chart.addEventListener("pointermove", (event) => {
      const { mark, vertex } = nearest(chart, event);
      show(mark, mark && describe(mark, vertex), event.clientX, event.clientY);
    });
    chart.addEventListener("pointerleave", () => show(null));
    chart.addEventListener("click", (event) => open(nearest(chart, event).mark));
    chart.addEventListener("focusin", (event) => event.target.matches("[role=img]") && showAtEnd(event.target));
    chart.addEventListener("focusout", () => show(null));
    chart.addEventListener("keydown", (event) => step(chart, event));
  }

  /* ------------------------------------------------------------------------------------ theme and links */

  function makeTheme(button) {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
    const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      label();
    });
    dark.addEventListener("change", label);
    label();
    button.hidden = false;
  }

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const card = target && target.closest("details");
    if (!card) return;
    card.hidden = false;
    card.open = true;
    card.scrollIntoView({ block: "start" });
  }

  for (const section of all("section.table")) {
    tableOf(section).settings = all(".heat tbody th", section).map((cell) => cell.textContent.trim());
  }
  all("table.sortable").forEach(makeSortable);
  all("svg.chart").forEach(makeLively);
  makeTheme(one("#theme"));
  controls.hidden = false;
  controls.addEventListener("input", read);
  controls.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  read();
  reveal();
})();
