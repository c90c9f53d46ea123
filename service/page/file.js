/**
 * A panel that scores a file of pairs: dropped or chosen, read in this browser, scored in calls of a few pairs, and shown
 * as accuracy, a histogram of margins and a table (file-results.js). Styles: file.css.
 */

import { element, plural } from "./dom.js";
import { scoreLines } from "./file-batches.js";
import { exampleFile } from "./file-example.js";
import { plainText, readLine, splitLines, Unreadable } from "./file-pairs.js";
import { Results } from "./file-results.js";
import { download } from "./share.js";

const MAX_BYTES = 256 * 2 ** 20;
const SLICE_MS = 12; // reading pauses this often, so that the page stays alive
const DRAW_MS = 300; // between two drawings of results that arrive
const EXAMPLE = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n{"prompt": "2 + 2?", "response_a": "5", "response_b": "4", "preferred": "b"}';

/**
 * Build the panel in `root`.
 *
 * call: as in api.js. state: the state of the form, or a function that returns it; its domain and its first model apply
 * to lines without their own. open: called with the state of a line that the user opens in the form.
 */
export function mountFile(root, { call, state, open = () => {} }) {
  new Panel(root, call, typeof state === "function" ? state : () => state ?? {}, open).show();
}

const idle = () => new Promise((resolve) => setTimeout(resolve));

class Panel {
  #lines = []; // of the file: readLine's, with `result` once there is one
  #options = {}; // of all lines that have none of their own
  #models = [];
  #name = "";
  #running = null; // an AbortController
  #drawn = 0;

  constructor(root, call, state, open) {
    Object.assign(this, { root, call, state, open });
  }

  show() {
    const input = element("input", { type: "file", accept: ".jsonl,.ndjson,.json,.txt", id: "file-input" });
    const label = element("label", { htmlFor: "file-input", textContent: "Drop a file of pairs here, or choose one" });
    const example = element("button", { type: "button", className: "quiet", textContent: "Use example pairs" });
    example.addEventListener("click", () => {
      input.value = "";
      this.#read(exampleFile());
    });
    const forms = element("details", {}, element("summary", { textContent: "What a line looks like" }), formsOfLines());
    const note = element("p", { className: "muted", textContent: "JSON lines. The file is read in this browser, and its texts go to this service only." });
    const drop = element("div", { className: "drop" }, label, element("div", { className: "choice" }, input, example), note, forms);
    input.addEventListener("click", () => (input.value = "")); // so that the same file can be chosen again
    input.addEventListener("change", () => input.files[0] && this.#read(input.files[0]));
    listenForFiles(drop, (files) => {
      input.files = files;
      if (files[0]) this.#read(files[0]);
    });

    this.status = element("p", { className: "muted", role: "status" });
    this.error = element("div", { className: "error", role: "alert", hidden: true });
    this.progress = element("progress", { max: 1, value: 0, hidden: true });
    this.progress.setAttribute("aria-label", "Pairs scored");
    this.count = element("span", { className: "muted" });
    this.stop = element("button", { type: "button", textContent: "Cancel", hidden: true });
    this.stop.addEventListener("click", () => (this.#running ? this.#cancel() : this.#score()));
    this.results = new Results((line) => this.open(this.#stateOf(line)), () => this.#download());
    const run = element("div", { className: "run" }, this.progress, this.count, this.stop);
    this.root.replaceChildren(element("div", { className: "file" }, drop, this.status, run, this.error, this.results.root));
  }

  // Reading

  async #read(file) {
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    this.#begin(file.name);
    try {
      if (file.size > MAX_BYTES) throw new Unreadable(`${file.name} is larger than ${MAX_BYTES / 2 ** 20} MB; use \`tinyrm score\` for it.`);
      await this.#parse(new Uint8Array(await file.arrayBuffer()), running.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error instanceof Unreadable ? "This file cannot be read" : error.name, error.message);
      return;
    }
    if (!running.signal.aborted) await this.#score();
  }

  #begin(name) {
    this.#lines = [];
    this.#name = name;
    const { domain, models = [] } = this.state();
    this.#models = models.slice(0, 1);
    this.#options = { ...(domain && { domain }), ...(models[0] && { model: models[0] }) };
    this.error.hidden = this.progress.hidden = this.stop.hidden = true;
    this.count.textContent = "";
    this.results.root.hidden = true;
    this.status.textContent = `Reading ${name}…`;
  }

  async #parse(bytes, signal) {
    let begun = performance.now();
    for (const text of splitLines(bytes)) {
      this.#lines.push(readLine(text, this.#lines.length + 1));
      if (performance.now() - begun < SLICE_MS) continue;
      await idle();
      signal.throwIfAborted();
      begun = performance.now();
    }
    for (const line of this.#lines) if (line.error) line.result = { error: line.error };
    if (!this.#lines.length) throw new Unreadable(`${this.#name} has no lines.`);
  }

  // Scoring

  async #score() {
    const running = (this.#running = new AbortController());
    const missing = this.#lines.filter((line) => !line.result);
    Object.assign(this.stop, { textContent: "Cancel", hidden: !missing.length });
    this.error.hidden = true;
    this.progress.hidden = !missing.length;
    this.status.textContent = missing.length ? `Scoring ${plural(missing.length, "pair")} of ${this.#name}…` : "";
    const begun = { at: performance.now(), lines: missing.length };
    this.#draw(begun);
    try {
      await scoreLines(missing.map(this.#withOptions), {
        call: this.call,
        signal: running.signal,
        onResults: (results) => this.#take(results, begun),
        onPause: (seconds) => this.#showPause(seconds, begun),
      });
      this.#end(running, "Done");
    } catch (error) {
      const isOurs = this.#end(running, "Stopped");
      if (isOurs && error.name !== "AbortError") this.#fail(error.type ?? error.name, error.message);
    }
  }

  /** The options of a line come before those of the form. */
  #withOptions = (line) => ({ line, number: line.number, item: { ...this.#options, ...line.item } });

  #take(results, begun) {
    for (const [{ line }, result] of results) {
      this.#refuseOption(line, result.error);
      line.result = result;
    }
    if (performance.now() - this.#drawn > DRAW_MS) this.#draw(begun);
  }

  /** A model or a domain that is not served would fail every line. */
  #refuseOption(line, error) {
    if (error?.type === "unknown_model" || (error?.type === "unknown_domain" && !line.item.domain)) {
      throw Object.assign(new Error(error.message), { type: error.type });
    }
  }

  #draw(begun) {
    this.#drawn = performance.now();
    const left = this.#lines.filter((line) => !line.result).length;
    const done = this.#lines.length - left;
    this.progress.value = this.#lines.length ? done / this.#lines.length : 0;
    const rate = (1000 * (begun.lines - left)) / Math.max(1, this.#drawn - begun.at);
    const rest = left && rate ? `, ${rate.toFixed(rate < 10 ? 1 : 0)} pairs/s, ${duration(left / rate)} left` : "";
    this.count.textContent = `${done.toLocaleString("en")} of ${plural(this.#lines.length, "line")}${rest}`;
    this.results.draw(this.#lines, this.#options);
  }

  #showPause(seconds, begun) {
    if (seconds >= 1) this.count.textContent = `The service is busy: next try in ${Math.ceil(seconds)} s`;
    else if (!seconds) this.#draw(begun);
  }

  /** Show that a run has ended, unless another one has begun. Return whether it was the last one. */
  #end(running, how) {
    if (this.#running !== running) return false;
    this.#running = null;
    const left = this.#lines.filter((line) => !line.result).length;
    this.#draw({ at: 0, lines: left });
    this.progress.hidden = !left;
    Object.assign(this.stop, { textContent: "Continue", hidden: !left });
    this.count.textContent = left ? this.count.textContent : "";
    this.status.textContent = `${how}. ${left ? `${plural(left, "pair")} not scored yet` : this.results.summary}`;
    return true;
  }

  #cancel() {
    this.#running.abort();
  }

  #fail(type, message) {
    this.error.replaceChildren(element("strong", { textContent: type }), ` ${message}`);
    this.error.hidden = false;
    if (!this.#lines.length) this.status.textContent = "";
  }

  // What leaves the panel

  #stateOf({ item }) {
    const text = (value) => (typeof value === "string" ? value : value.map(plainText).filter(Boolean).join("\n\n"));
    const { prompt } = item;
    return {
      prompt: typeof prompt === "string" ? prompt : prompt.map((turn) => ({ role: turn.role, content: plainText(turn) })),
      responses: [text(item.response_a), text(item.response_b)],
      domain: item.domain ?? this.#options.domain ?? "",
      models: this.#models,
    };
  }

  /** Save each line with its result, as `tinyrm score` writes it. */
  #download() {
    const records = this.#lines.filter((line) => line.result).map((line) => recordOf(line, this.#options) + "\n");
    download(`${this.#name.replace(/\.[^.]*$/, "")}.scored.jsonl`, "application/x-ndjson", records);
  }
}

/** Return a line's own text with one more field, so that its numbers stay as they were written. */
function recordOf({ number, text, fields, result }, options) {
  const kind = result.error ? "error" : "reply";
  const own = { index: number - 1, ...(Object.keys(options).length && { options }), [kind]: result.error ?? result };
  const isWhole = fields && !Object.hasOwn(fields, "tinyrm");
  if (!isWhole) return JSON.stringify({ ...fields, tinyrm: own });
  const start = text.slice(0, -1).trimEnd();
  return `${start}${start === "{" ? "" : ", "}"tinyrm": ${JSON.stringify(own)}}`;
}

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`);

function formsOfLines() {
  const example = element("pre", { textContent: EXAMPLE, tabIndex: 0 });
  example.setAttribute("role", "group");
  example.setAttribute("aria-label", "Two lines");
  const text =
    "A prompt with chosen and rejected, or with response_a, response_b and, if a person has decided, preferred (a, b or " +
    "tie). Prompts and responses may be lists of messages, and a line may have its own domain. Other fields are kept.";
  return element("div", {}, element("p", { className: "muted", textContent: text }), example);
}

function listenForFiles(area, take) {
  const mark = (event) => {
    event.preventDefault();
    area.classList.toggle("over", event.type === "dragover");
  };
  for (const type of ["dragover", "dragleave", "drop"]) area.addEventListener(type, mark);
  area.addEventListener("drop", (event) => take(event.dataTransfer.files));
}
