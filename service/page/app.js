// The page at /: it starts the parts and runs a comparison.

import { addressOf, call, hasKey, useKey } from "./api.js";
import { $, announce, choose } from "./dom.js";
import { clearError, showError } from "./errors.js";
import { EXAMPLES, mountExamples, showExample, showFound, stateOf } from "./examples.js";
import { mountFile } from "./file.js";
import { addEmptyResponse, checkState, mountForm, readState, writeState } from "./form.js";
import { loadModels, mountModels, servedModel } from "./models.js";
import { readPasted } from "./paste.js";
import { hideResult, setStale, showResults, spoken } from "./result.js";
import { keep, mountSharing, stateInAddress } from "./sharing.js";
import { mountSnippets, showSnippets } from "./snippet.js";
import { countSoon, partsOf, showTruncated } from "./tokens.js";
import { mountViews, nextView, showView } from "./views.js";

let running = new AbortController();
let example = null;
let isBegun = false;

// A comparison

/** Return the call for a state and one of its models; null for the model that the service chooses. */
function callOf({ prompt, responses, domain }, model) {
  const shared = { prompt, ...(domain && { domain }), ...(model && { model }) };
  if (responses.length > 2) return ["v1/rank", { ...shared, responses, swap: "on" }];
  return ["v1/compare", { ...shared, response_a: responses[0], response_b: responses[1], swap: "on" }];
}

/**
 * Compare what is in the form, with each chosen model.
 * isAsked: somebody wants to see the result. isKept: the history has this comparison already.
 */
async function compare({ isAsked = true, isKept = false } = {}) {
  if (!checkState()) return;
  running.abort();
  const { signal } = (running = new AbortController());
  const state = readState();
  const calls = (state.models.length ? state.models : [null]).map((model) => callOf(state, model));
  setBusy();
  try {
    const ends = await Promise.allSettled(calls.map((one) => callOne(one, calls.length > 1, signal)));
    if (signal.aborted) return;
    // What one model replied is worth seeing, whatever became of the other's call.
    const results = ends.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
    if (results.length) show(state, results, calls[0], { isAsked, isKept });
    const failed = ends.find(({ status }) => status === "rejected");
    if (failed) fail(failed.reason, results.length > 0);
  } catch (error) {
    fail(error);
  } finally {
    if (!signal.aborted) document.body.removeAttribute("aria-busy");
  }
}

/** Run a call. Its error names the model if there is another one. */
async function callOne([path, body], isNamed, signal) {
  try {
    return await call(path, body, signal);
  } catch (error) {
    if (isNamed && error.name !== "AbortError") error.message = `${body.model}: ${error.message}`;
    throw error;
  }
}

function setBusy() {
  document.body.setAttribute("aria-busy", "true");
  clearError($("error"));
  $("key").removeAttribute("aria-invalid");
  announce("Comparing…");
}

function show(state, results, [path, body], { isAsked, isKept }) {
  const found = showResults(state, results);
  showFound(example, found);
  const { truncated, truncated_tokens: total } = results[0].reply;
  showTruncated(truncated ? partsOf(truncated) : [], state, { isResult: true, total });
  showSnippets(path, body);
  keep(state, results.map(({ reply }) => reply), spoken(), { isAsked, isKept });
  announce(`${spoken()}. The reply took ${Math.max(...results.map((one) => one.roundTripMs)).toFixed(0)} ms.`, { isSpoken: true });
  if (isAsked) $("result").scrollIntoView({ block: matchMedia("(max-width: 40rem)").matches ? "start" : "nearest" });
}

/** Show why a call failed; hasResult: whether another model's call gave a result, which is shown. */
function fail(error, hasResult = false) {
  if (!hasResult) {
    announce("");
    setStale(true, "This is the result of the comparison before.");
  }
  showError($("error"), error, () => compare());
  if (error.type === "unauthorized") askForKey();
}

function askForKey() {
  $("key-field").hidden = false;
  if (hasKey()) $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

function stop() {
  running.abort();
  document.body.removeAttribute("aria-busy");
  announce("Stopped.");
}

// What fills the form

function fill(state) {
  const missing = writeState(state);
  hideResult();
  changed();
  return missing;
}

function fillExample(chosen, { isAsked = true } = {}) {
  fill(stateOf(chosen));
  showExample((example = chosen));
  const compared = compare({ isAsked });
  showPage();
  return compared;
}

/** Show a state that was compared before; a part of it may be empty. isKept: as for `compare`. */
function open(state, { isKept = false } = {}) {
  const missing = fill(state);
  // Another model would give another result, which is not the one that was shared.
  if (missing.length) return showNotServed(missing);
  if (state.responses.length > 1 && [state.prompt, ...state.responses].every((text) => text.length > 0)) compare({ isKept });
}

function showNotServed(missing) {
  running.abort();
  document.body.removeAttribute("aria-busy");
  announce("");
  showError($("error"), {
    type: "not_served",
    message: `This service does not have the ${missing.join(", nor the ")}. Check what is chosen instead, and press Compare.`,
  });
}

/** Show the part of the page that the address names. */
function showPage() {
  const name = location.hash === "#file" ? "file" : "playground";
  for (const link of document.querySelectorAll("[data-page]")) {
    const isHere = link.dataset.page === name;
    $(link.dataset.page).hidden = !isHere;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // Domain, model and key apply to both parts, so they stand in the one that is shown.
  $(name === "file" ? "file-options" : "question").append($("options"));
  if (example) chooseDomain(name === "file" ? servedModel()?.default_domain : example.domain);
}

/** The domain of an example is nothing that somebody chose, so a file is not scored in it. */
function chooseDomain(domain) {
  choose($("domain"), domain ?? "");
  $("domain").dispatchEvent(new Event("change", { bubbles: true }));
}

/** Open a pair of a file in the form. */
function openPair(state) {
  location.hash = "";
  showPage();
  open(state);
}

function clear() {
  fill({ prompt: "", responses: [], domain: "", models: readState().models });
  announce("");
  $("prompt").focus();
}

function paste(event) {
  if (event.target.tagName !== "TEXTAREA") return;
  const pasted = readPasted(event.clipboardData.getData("text/plain"));
  if (!pasted) return;
  event.preventDefault();
  fill(pasted.state);
  announce(`Filled in from ${pasted.kind}.`);
}

/** Something in the form is not what it was. */
function changed(event) {
  if (event?.target === $("key")) return;
  showExample((example = null));
  setStale(true);
  $("truncated").hidden = true;
  showView();
  countSoon();
}

// The start

async function load() {
  clearError($("down"));
  try {
    await loadModels();
  } catch (error) {
    $("serving").textContent = "";
    if (error.type === "unauthorized") askForKey();
    showError($("down"), error, load);
    return;
  }
  if (!isBegun) await begin();
}

/** The page begins with what is in its address, or with an example that is compared. */
async function begin() {
  isBegun = true;
  const shared = await stateInAddress();
  if (shared) open(shared);
  else if (readState().prompt === "") fillExample(EXAMPLES[0], { isAsked: false });
}

const SHORTCUTS = {
  KeyR: () => $("result").focus(),
  KeyN: () => (addEmptyResponse(), changed()),
  KeyV: nextView,
};

function shortcut(event) {
  if ($("playground").hidden) return;
  const { key, code, altKey, target } = event;
  if (key === "Enter" && (event.ctrlKey || event.metaKey)) return $("form").requestSubmit();
  if (key === "Escape" && document.body.hasAttribute("aria-busy")) return stop();
  if (key === "?" && !/^(TEXTAREA|INPUT|SELECT)$/.test(target.tagName)) return $("shortcuts").showModal();
  if (altKey && SHORTCUTS[code]) {
    event.preventDefault();
    SHORTCUTS[code]();
  }
}

function start() {
  mountForm(changed);
  mountModels();
  mountViews();
  mountSnippets();
  mountSharing(open);
  mountFile($("file-panel"), { call, state: readState, open: openPair });
  window.addEventListener("hashchange", showPage);
  showPage();
  mountExamples(fillExample);
  $("form").addEventListener("submit", (event) => (event.preventDefault(), compare()));
  $("form").addEventListener("paste", paste);
  document.addEventListener("keydown", shortcut);
  $("clear").addEventListener("click", clear);
  $("keys").addEventListener("click", () => $("shortcuts").showModal());
  $("key").addEventListener("input", () => useKey($("key").value));
  $("key").addEventListener("change", load);
  load();
}

start();
