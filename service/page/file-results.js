/**
 * What is known of the lines of a file that have a result: accuracy with its interval, a histogram of margins, the lines
 * without a result, and a table. Texts enter it as textContent.
 */

import { element, percent, plural, signed, whenReleased } from "./dom.js";
import { plainText } from "./file-pairs.js";

const ROWS = 50; // of one page of the table
const BAD_LINES = 100; // that are listed
const BINS = 24; // an even number, so that zero is a border

/** The results of a file, drawn anew as they arrive. open: called with a line. save: called without arguments. */
export class Results {
  #rows = []; // of the lines that have a result
  #bad = []; // lines that have an error
  #isLabelled = false; // whether a person decided any of them
  #sort = { column: "result", direction: 1 };
  #page = 0;

  constructor(open, save) {
    this.open = open;
    this.summary = "";
    this.accuracy = element("p", { className: "accuracy" });
    this.detail = element("p", { className: "muted" });
    this.confidence = element("p", { className: "muted" });
    this.model = element("p", { className: "muted" });
    this.histogram = element("figure", { className: "histogram" });
    this.bad = element("details", { className: "bad" });
    this.pages = element("div", { className: "pages" });
    this.head = element("tr");
    this.body = element("tbody");
    const table = element("table", {}, element("caption", { textContent: "Pairs" }), element("thead", {}, this.head), this.body);
    this.table = element("div", { className: "pairs", tabIndex: 0 }, table);
    this.table.setAttribute("role", "region");
    this.table.setAttribute("aria-label", "Table of pairs");
    const saving = element("button", { type: "button", textContent: "Download results (JSONL)" });
    saving.addEventListener("click", save);
    const parts = [this.accuracy, this.detail, this.confidence, this.model, this.histogram, this.bad, this.table, this.pages, saving];
    this.root = element("section", { className: "results", hidden: true }, ...parts);
    this.root.setAttribute("aria-label", "Results of the file");
  }

  /** options: those of lines that have none of their own. */
  draw(lines, { domain } = {}) {
    const scored = lines.filter((line) => line.result && !line.result.error);
    this.#rows = scored.map(rowOf);
    this.#bad = lines.filter((line) => line.result?.error);
    this.#isLabelled = scored.some((line) => line.label);
    this.root.hidden = !scored.length && !this.#bad.length;
    this.#drawSummary();
    const models = [...new Set(scored.map((line) => line.result.model))].join(", ");
    const ofLines = domain ? `the domain ${domain} where a line has none of its own` : "the domain of each line";
    this.model.textContent = models ? `Scored by ${models}, in ${ofLines}.` : "";
    this.#drawHistogram();
    whenReleased(this.root, () => {
      this.#drawBad();
      this.#drawHead();
      this.#drawRows();
    });
  }

  #drawSummary() {
    const judged = this.#rows.filter((row) => row.share !== null);
    const ties = this.#rows.filter((row) => row.label === "tie").length;
    const noResult = this.#bad.length ? ` ${plural(this.#bad.length, "line")} without a result.` : "";
    if (this.#isLabelled && judged.length) {
      const share = accuracyOf(judged);
      const [low, high] = wilson(share, judged.length);
      const leftOut = ties ? `; ${plural(ties, "tie")} left out` : "";
      this.accuracy.textContent = `${percent(share)} accuracy`;
      this.detail.textContent = `95 % interval ${percent(low)} to ${percent(high)}, of ${plural(judged.length, "labelled pair")}${leftOut}.${noResult}`;
    } else {
      const preferred = this.#rows.filter((row) => row.verdict === "a").length;
      const share = this.#rows.length ? `A is preferred in ${percent(preferred / this.#rows.length)}. ` : "";
      this.accuracy.textContent = plural(this.#rows.length, "pair");
      this.detail.textContent = `${share}No line says which response is better, so there is no accuracy.${noResult}`;
    }
    this.confidence.textContent = judged.length ? bySurety(judged) : "";
    this.summary = `${this.accuracy.textContent}.${noResult}`;
  }

  /** Margins towards the better response where it is known, towards A elsewhere. */
  #drawHistogram() {
    const isLabelled = this.#isLabelled;
    const margins = this.#rows.filter((row) => !isLabelled || row.share !== null).map((row) => (isLabelled ? row.towards : row.margin));
    this.histogram.hidden = !margins.length;
    if (!margins.length) return;
    const most = Math.max(...margins.map(Math.abs), 0.01);
    const bins = new Array(BINS).fill(0);
    for (const margin of margins) bins[Math.min(BINS - 1, Math.floor(((margin / most + 1) / 2) * BINS))] += 1;
    const right = margins.filter((margin) => margin > 0).length;
    const [wrongName, rightName] = isLabelled ? ["wrong", "right"] : ["for B", "for A"];
    const title = `Margins of ${plural(margins.length, "pair")}`;
    const sides = `${plural(right, "pair")} ${rightName}, ${plural(margins.length - right, "pair")} ${wrongName}; from ${signed(Math.min(...margins))} to ${signed(Math.max(...margins))} log-odds`;
    const ends = [`${wrongName} ${signed(-most)}`, "0", `${signed(most)} ${rightName}`];
    this.histogram.replaceChildren(
      element("figcaption", { textContent: `${title}: ${sides}. The highest bar has ${plural(Math.max(...bins), "pair")}.` }),
      bars(bins, `${title}: ${sides}`),
      element("div", { className: "ends" }, ...ends.map((text) => element("span", { textContent: text }))),
    );
  }

  #drawBad() {
    const lines = this.#bad;
    this.bad.hidden = !lines.length;
    if (this.bad.dataset.lines === String(lines.length)) return;
    this.bad.dataset.lines = lines.length;
    const items = lines.slice(0, BAD_LINES).map(({ number, result }) => {
      const reason = result.error.message.replace(`line ${number}: `, "");
      return element("li", {}, element("strong", { textContent: `Line ${number}` }), ` ${reason.slice(0, 500)}`);
    });
    const more = lines.length - items.length;
    if (more > 0) items.push(element("li", { textContent: `and ${plural(more, "more line")}: all are in the download` }));
    this.bad.replaceChildren(element("summary", { textContent: `${plural(lines.length, "line")} without a result` }), element("ul", {}, ...items));
  }

  // The table

  #drawHead() {
    const columns = Object.entries(COLUMNS).filter(([, column]) => this.#isLabelled || !column.needsLabel);
    if (this.head.children.length === columns.length) return this.#markSorted();
    this.head.replaceChildren(
      ...columns.map(([name, { title, className = "" }]) => {
        const button = element("button", { type: "button", className: "sort", textContent: title });
        button.addEventListener("click", () => this.#sortBy(name));
        const cell = element("th", { scope: "col", className }, button);
        cell.dataset.column = name;
        return cell;
      }),
    );
    this.#markSorted();
  }

  #markSorted() {
    for (const cell of this.head.children) {
      const isSorted = cell.dataset.column === this.#sort.column;
      cell.setAttribute("aria-sort", !isSorted ? "none" : this.#sort.direction > 0 ? "ascending" : "descending");
    }
  }

  #sortBy(column) {
    this.#sort = { column, direction: this.#sort.column === column ? -this.#sort.direction : 1 };
    this.#page = 0;
    this.#markSorted();
    this.#drawRows();
  }

  #drawRows() {
    const { key } = COLUMNS[this.#sort.column];
    const sorted = this.#rows.map((row) => ({ row, key: key(row) }));
    sorted.sort((a, b) => this.#sort.direction * compareKeys(a.key, b.key) || a.row.number - b.row.number);
    const last = Math.max(0, Math.ceil(sorted.length / ROWS) - 1);
    this.#page = Math.min(this.#page, last);
    const start = this.#page * ROWS;
    const shown = sorted.slice(start, start + ROWS).map(({ row }) => row);
    const focused = this.body.contains(document.activeElement) ? document.activeElement.dataset.number : null;
    this.body.replaceChildren(...shown.map((row) => this.#tableRow(row)));
    if (focused) this.body.querySelector(`[data-number="${focused}"]`)?.focus();
    this.#drawPages(start, shown.length, last);
  }

  #tableRow(row) {
    const open = element("button", { type: "button", className: "open", textContent: row.prompt });
    open.dataset.number = row.number;
    open.setAttribute("aria-label", `Open line ${row.number} in the form: ${row.prompt}`);
    open.addEventListener("click", () => this.open(row.line));
    const cells = [
      element("td", { className: "number", textContent: row.number }),
      ...(this.#isLabelled ? [element("td", { className: row.outcome, textContent: row.outcome })] : []),
      element("td", { className: "prompt" }, open),
      element("td", { textContent: verdictText(row) }),
      ...(this.#isLabelled ? [element("td", { textContent: row.label === "tie" ? "tie" : (row.label ?? "").toUpperCase() })] : []),
      element("td", { className: "number", textContent: signed(row.margin) }),
    ];
    return element("tr", {}, ...cells);
  }

  #drawPages(start, shown, last) {
    const turn = (text, step, isPossible) => {
      const button = element("button", { type: "button", textContent: text, disabled: !isPossible });
      button.addEventListener("click", () => {
        this.#page += step;
        this.#drawRows();
        const [back, , forth] = this.pages.children;
        const same = step < 0 ? back : forth;
        (same.disabled ? (step < 0 ? forth : back) : same).focus();
      });
      return button;
    };
    this.pages.hidden = last === 0;
    const place = `${start + 1} to ${start + shown} of ${plural(this.#rows.length, "pair")}`;
    const buttons = [turn("Previous", -1, this.#page > 0), turn("Next", 1, this.#page < last)];
    const isSame = this.pages.textContent === `Previous${place}Next`;
    if (!isSame) this.pages.replaceChildren(buttons[0], element("span", { className: "muted", textContent: place }), buttons[1]);
  }
}

/** Return what the table shows of a line. towards: the margin towards the better response. share: right, as a number. */
function rowOf(line) {
  const { number, label, item, result } = line;
  const { preferred: verdict, margin, confidence } = result;
  const isJudged = label === "a" || label === "b";
  const share = !isJudged ? null : verdict === "tie" ? 0.5 : Number(verdict === label);
  return {
    ...{ line, number, label, verdict, margin, confidence, share },
    outcome: share === null ? "" : share === 1 ? "right" : share === 0 ? "wrong" : "tie",
    towards: label === "b" ? -margin : margin,
    prompt: beginningOf(item.prompt),
  };
}

/** Of a dialogue, the last turn tells lines apart. */
function beginningOf(prompt) {
  const text = typeof prompt === "string" ? prompt : plainText(prompt.at(-1));
  return text.slice(0, 300).replace(/\s+/g, " ").trim().slice(0, 120) || "(blank)";
}

const COLUMNS = {
  line: { title: "Line", key: (row) => [row.number], className: "number" },
  // The surest mistake first, and the surest success last.
  result: { title: "Result", key: (row) => [row.share ?? 2, row.share === null ? 0 : row.towards], needsLabel: true },
  prompt: { title: "Prompt", key: (row) => [row.prompt] },
  verdict: { title: "Model", key: (row) => [row.verdict, -Math.abs(row.margin)] },
  label: { title: "Label", key: (row) => [row.label ?? "~"], needsLabel: true },
  margin: { title: "Margin for A", key: (row) => [row.margin], className: "number" },
};

function compareKeys(a, b) {
  const at = a.findIndex((part, index) => part !== b[index]);
  if (at < 0) return 0;
  return a[at] < b[at] ? -1 : 1;
}

function verdictText({ verdict, confidence }) {
  if (verdict === "tie") return "tie";
  return `${verdict.toUpperCase()}, ${confidence === "close" ? "too close to call" : confidence}`;
}

// Numbers

/** A tie of the model is half right. */
const accuracyOf = (rows) => rows.reduce((sum, row) => sum + row.share, 0) / rows.length;

/** Return Wilson's 95 % interval of a share of n. */
function wilson(share, n) {
  const z2 = 1.959964 ** 2;
  const middle = (share + z2 / (2 * n)) / (1 + z2 / n);
  const half = (1.959964 / (1 + z2 / n)) * Math.sqrt((share * (1 - share)) / n + z2 / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** Say how often each kind of verdict is right. */
function bySurety(rows) {
  const kinds = { clear: "clear", leaning: "leaning", close: "too close to call" };
  const parts = Object.entries(kinds).map(([kind, words]) => {
    const some = rows.filter((row) => row.confidence === kind);
    return some.length ? `${words}, ${percent(accuracyOf(some))} of ${some.length.toLocaleString("en")}` : null;
  });
  return `Accuracy by confidence: ${parts.filter(Boolean).join("; ")}.`;
}

/** Return bars as a picture; it is stretched to its place, so its words are outside of it. */
function bars(bins, title) {
  const draw = (tag, attributes) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    return one;
  };
  const picture = draw("svg", { viewBox: `0 0 ${BINS} 100`, preserveAspectRatio: "none", role: "img", "aria-label": title });
  const most = Math.max(...bins);
  bins.forEach((number, at) => {
    const height = number && Math.max(1.5, (100 * number) / most);
    const side = at < BINS / 2 ? "left" : "right";
    picture.append(draw("rect", { class: side, x: at + 0.06, y: 100 - height, width: 0.88, height }));
  });
  picture.append(draw("line", { x1: BINS / 2, x2: BINS / 2, y1: 0, y2: 100, "vector-effect": "non-scaling-stroke" }));
  return picture;
}
