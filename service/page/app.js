// Text that people type enters the document as textContent and value, never as markup.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const EXAMPLE = {
  prompt: "I failed my exam. What should I do now?",
  responses: [
    "I am sorry to hear that. It may help to talk to your teacher, find out what went wrong, and try again.",
    "Stop whining. Nobody cares about you, loser.",
  ],
};

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const count = (number) => number.toLocaleString("en");
const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;
const nameOf = (index) => `Response ${LETTERS[index]}`;

/** An error that the service, or a proxy before it, returned. */
class Refused extends Error {
  constructor(type, message) {
    super(message);
    this.type = type;
  }
}

// Calls

let running = new AbortController();

const addressOf = (path) => new URL(path, document.baseURI).href;

function headersNow() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** Return {reply, roundTripMs, serviceMs}. Throw Refused, or AbortError if another call has replaced this one. */
async function call(path, body, signal) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const begun = performance.now();
  try {
    const response = await fetch(addressOf(path), { ...options, headers: headersNow(), signal });
    const reply = isJson(response) ? await response.json() : null;
    if (!response.ok || !reply) throw refusalOf(response, reply);
    return { reply, roundTripMs: performance.now() - begun, serviceMs: serviceMs(response) };
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused("no_reply", `The service did not reply (${error.message}). Is it running?`);
  }
}

/** A proxy may reply with a page of its own. */
const isJson = (response) => response.headers.get("Content-Type")?.startsWith("application/json");

function refusalOf(response, reply) {
  const { type, message } = reply?.error ?? { type: `status_${response.status}`, message: response.statusText };
  const wait = response.headers.get("Retry-After");
  return new Refused(type, wait ? `${message} (try again in ${wait} s)` : message);
}

/** Return the service's own time, from its Server-Timing header. */
function serviceMs(response) {
  const total = /\btotal;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
  return total && Number(total[1]);
}

// The form

const cards = () => [...$("responses").children];
const boxOf = (card) => card.querySelector("textarea");
const fromTemplate = (id) => $(id).content.firstElementChild.cloneNode(true);

function addResponse(text = "") {
  const card = fromTemplate("response-form");
  boxOf(card).value = text;
  card.querySelector("button").addEventListener("click", () => removeResponse(card));
  $("responses").append(card);
  letter();
  return card;
}

function removeResponse(card) {
  const at = cards().indexOf(card);
  card.remove();
  letter();
  boxOf(cards()[Math.min(at, cards().length - 1)]).focus();
  announce(`${nameOf(at)} removed.`);
  markStale();
}

/** Name the responses by their places: always A, B, C without a gap. */
function letter() {
  const all = cards();
  all.forEach((card, index) => {
    const label = card.querySelector("label");
    label.htmlFor = boxOf(card).id = `response-${LETTERS[index]}`;
    label.textContent = nameOf(index);
    const remove = card.querySelector("button");
    remove.setAttribute("aria-label", `Remove response ${LETTERS[index]}`);
    remove.hidden = all.length <= 2;
  });
  $("responses").classList.toggle("two", all.length === 2);
  $("add").disabled = all.length >= LETTERS.length;
}

function fillExample() {
  $("prompt").value = EXAMPLE.prompt;
  cards().slice(2).forEach((card) => card.remove());
  cards().forEach((card, index) => (boxOf(card).value = EXAMPLE.responses[index]));
  letter();
  chooseDomain("safety");
  $("compare").focus();
  markStale();
}

function comparisonInForm() {
  const domain = $("domain").value;
  return { prompt: $("prompt").value, responses: cards().map((card) => boxOf(card).value), ...(domain && { domain }) };
}

const pairOf = ({ responses: [response_a, response_b], ...rest }) => ({ ...rest, response_a, response_b });

function callOf({ responses, ...rest }) {
  if (responses.length > 2) return ["v1/rank", { ...rest, responses, swap: "on" }];
  return ["v1/compare", { ...pairOf({ ...rest, responses }), swap: "on" }];
}

function bothOrders({ responses, ...rest }) {
  const orders = [responses, [...responses].reverse()];
  return { items: orders.map((order) => ({ ...pairOf({ ...rest, responses: order }), swap: "off" })) };
}

// What is served

let served = [];

async function loadModels() {
  try {
    const { models } = (await call("v1/models")).reply;
    served = models;
    showServing(models.find((model) => model.default));
    showDomains(models);
  } catch (error) {
    $("serving").textContent = error.type === "unauthorized" ? "This service needs an API key." : error.message;
  }
}

function showServing({ name, revision, engine, precision }) {
  $("serving").textContent = `${name}@${revision} on ${engine}, ${precision}`;
}

/** Return the card of a reply's model; of a cascade there is none. */
function cardOf({ model }) {
  return served.find(({ name, revision }) => `${name}@${revision}` === model);
}

/** Only a model that reads pairs has orders to compare. */
function hasOrders(reply) {
  return (cardOf(reply)?.reads ?? "pair") === "pair";
}

function showDomains(models) {
  const chosen = $("domain").value || models.find((model) => model.default).default_domain;
  const domains = [...new Set(models.flatMap((model) => Object.keys(model.domains)))];
  $("domain").replaceChildren(...domains.map((domain) => optionOf(domain, models)));
  chooseDomain(chosen);
}

/** Models may have different instructions for a domain; the service chooses the model, so then none is shown. */
function optionOf(domain, models) {
  const option = new Option(domain, domain);
  const wordings = new Set(models.map((model) => model.domains[domain]).filter(Boolean));
  option.dataset.instruction = wordings.size === 1 ? [...wordings][0] : "";
  return option;
}

function chooseDomain(domain) {
  const option = [...$("domain").options].find(({ value }) => value === domain);
  if (option) option.selected = true;
  showInstruction();
}

function showInstruction() {
  const instruction = $("domain").selectedOptions[0]?.dataset.instruction;
  $("instruction").textContent = instruction ? `Instruction of the model: “${instruction}”` : "";
}

// Comparing

async function compare() {
  running.abort();
  const { signal } = (running = new AbortController());
  const comparison = comparisonInForm();
  begin();
  try {
    await run(comparison, signal);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  } finally {
    if (!signal.aborted) document.body.removeAttribute("aria-busy");
  }
}

async function run(comparison, signal) {
  const [path, body] = callOf(comparison);
  const result = await call(path, body, signal);
  const isPair = comparison.responses.length === 2;
  const isOrdered = isPair && hasOrders(result.reply);
  $("pair").hidden = !isPair;
  $("ranking").hidden = isPair;
  $("by-order").hidden = !isOrdered;
  (isPair ? showPair : showRanking)(result.reply, comparison.responses);
  showFacts(result);
  $("curl").textContent = curlOf(path, body);
  reveal(result.roundTripMs);
  if (isOrdered) await showOrders(comparison, signal);
}

function begin() {
  document.body.setAttribute("aria-busy", "true");
  $("error").hidden = true;
  $("error").replaceChildren();
  $("key").removeAttribute("aria-invalid");
  announce("Comparing…");
}

function reveal(ms) {
  $("result").hidden = false;
  $("stale").hidden = true;
  $("result").classList.remove("stale");
  announce(`${$("verdict").textContent}. The reply took ${ms.toFixed(0)} ms.`);
  $("result").scrollIntoView({ block: "nearest" });
}

const announce = (text) => ($("status").textContent = text);

function markStale() {
  if ($("result").hidden) return;
  $("stale").hidden = false;
  $("result").classList.add("stale");
}

function showError({ type = "page_error", message }) {
  const strong = document.createElement("strong");
  strong.textContent = type;
  $("error").replaceChildren(strong, ` ${message}`);
  $("error").hidden = false;
  announce("");
  markStale();
  if (type !== "unauthorized") return;
  $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

// Results

function setShare(bar, share) {
  bar.style.setProperty("--share", percent(share).replace(" ", ""));
}

/** Say how sure the verdict is: a probability near one half is no verdict. */
function verdictText({ preferred, confidence }) {
  const better = preferred.toUpperCase();
  return { close: "Too close to call", leaning: `Leans ${better}`, clear: `Clearly ${better}` }[confidence];
}

function showPair(reply) {
  const { preferred, probability_a, probability_b } = reply;
  $("verdict").textContent = verdictText(reply);
  const how = hasOrders(reply)
    ? "mean of both orders"
    : cardOf(reply).scores_alone
      ? "from the score of each response by itself"
      : "from both responses beside each other";
  const chosen = preferred === "tie" ? "either response" : `response ${preferred.toUpperCase()}`;
  $("surety").textContent = `Probability ${percent(Math.max(probability_a, probability_b))} for ${chosen}, ${how}.`;
  $("share-a").textContent = `A ${percent(probability_a)}`;
  $("share-b").textContent = `${percent(probability_b)} B`;
  setShare($("bar"), probability_a);
  $("orders").replaceChildren();
  $("shift").textContent = "Scoring each order by itself…";
}

/** Show how much of a verdict comes from the position: each order by itself, in one more call. */
async function showOrders(comparison, signal) {
  try {
    const [forward, backward] = (await call("v1/compare/batch", bothOrders(comparison), signal)).reply.results;
    const failed = forward.error ?? backward.error;
    if (failed) throw new Refused(failed.type, failed.message);
    const [aFirst, bFirst] = [forward.probability_a, backward.probability_b];
    $("orders").replaceChildren(orderRow("A first", aFirst), orderRow("B first", bFirst));
    $("shift").textContent = shiftText(aFirst - bFirst);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    $("shift").textContent = `Not scored: ${error.type}, ${error.message}`;
  }
}

function shiftText(shift) {
  const points = `${(100 * Math.abs(shift)).toFixed(1)} points`;
  const place = shift > 0 ? "first" : "second";
  if (Math.abs(shift) < 0.0005) return "The order makes no difference here.";
  return `A response gets ${points} more here if it is ${place}. The mean of both orders cancels that.`;
}

function orderRow(name, share) {
  const row = fromTemplate("order-row");
  row.querySelector(".name").textContent = name;
  row.querySelector(".figure").textContent = `A ${percent(share)}`;
  setShare(row.querySelector(".bar"), share);
  return row;
}

function showRanking(reply, responses) {
  const { order, strengths, standard_errors, comparisons } = reply;
  $("verdict").textContent = `${nameOf(order[0])} is the best of ${responses.length}`;
  $("surety").textContent = comparisons
    ? "Each response was compared with the others, in both orders."
    : cardOf(reply)?.scores_alone
      ? "Each response was scored by itself."
      : "All responses were read beside each other.";
  const errors = standard_errors.map((error) => error ?? 0);
  const axis = axisOf(strengths, errors);
  const rows = order.map((index, place) => {
    const row = rankRow(nameOf(index), responses[index], strengths[index], errors[index], axis);
    row.querySelector(".odds").textContent = oddsText(strengths, index, order[place + 1]);
    return row;
  });
  $("ranks").replaceChildren(...rows);
}

function oddsText(strengths, index, next) {
  if (next === undefined) return "";
  return `${percent(1 / (1 + Math.exp(strengths[next] - strengths[index])))} to beat ${LETTERS[next]}`;
}

/** Return a function from strength to place in percent, with room for every whisker. */
function axisOf(strengths, errors) {
  const low = Math.min(...strengths.map((strength, i) => strength - errors[i]));
  const high = Math.max(...strengths.map((strength, i) => strength + errors[i]));
  return (strength) => `${high > low ? 4 + (92 * (strength - low)) / (high - low) : 50}%`;
}

function rankRow(name, text, strength, error, axis) {
  const row = fromTemplate("rank-row");
  row.querySelector(".name").textContent = name;
  row.querySelector(".text").textContent = text.slice(0, 200);
  row.querySelector(".figure").textContent = `${signed(strength)} ± ${error.toFixed(2)}`;
  const places = { "--at": strength, "--from": strength - error, "--to": strength + error, "--zero": 0 };
  for (const [property, value] of Object.entries(places)) row.style.setProperty(property, axis(value));
  return row;
}

function showFacts({ reply, roundTripMs, serviceMs: inside }) {
  const facts = [
    ["Latency", `${roundTripMs.toFixed(1)} ms`],
    inside !== null && ["In the service", `${inside.toFixed(1)} ms`],
    reply.comparisons > 0 && ["Comparisons", count(reply.comparisons)],
    ["Sequences", count(reply.usage.sequences)],
    ["Tokens", count(reply.usage.tokens)],
    ["Compute", `${reply.usage.gflops.toFixed(2)} GFLOPs`],
    ["Truncated", truncatedText(reply)],
    reply.cycle_rate != null && ["Cycles", percent(reply.cycle_rate)],
    ["Model", reply.model],
  ];
  $("facts").replaceChildren(...facts.filter(Boolean).map(factOf));
}

function factOf([name, value]) {
  const fact = fromTemplate("fact");
  fact.querySelector("dt").textContent = name;
  fact.querySelector("dd").textContent = value;
  return fact;
}

/** Return how many tokens the model did not see, by part. */
function truncatedText({ truncated, truncated_tokens }) {
  const { prompt, response_a: A, response_b: B } = truncated ?? {};
  const parts = Object.entries(truncated ? { prompt, A, B } : { "": truncated_tokens });
  const dropped = parts.filter(([, tokens]) => tokens > 0).map(([part, tokens]) => `${part} ${count(tokens)}`.trim());
  return dropped.length ? `${dropped.join(", ")} tokens` : "nothing";
}

// curl

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return the call for a POSIX shell. A variable stands for the key: people paste commands where others read them. */
function curlOf(path, body) {
  const lines = [`curl -s ${quoted(addressOf(path))}`, `-H ${quoted("Content-Type: application/json")}`];
  if ($("key").value.trim()) lines.push('-H "Authorization: Bearer $TINYRM_API_KEY"');
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return [...lines, `-d ${quoted(json)}`].join(" \\\n  ");
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    announce("Copied.");
  } catch {
    // There is no clipboard outside of HTTPS and localhost: select the text, so that the usual keys copy it.
    getSelection().selectAllChildren($("curl"));
    announce("Selected; copy it with the keyboard.");
  }
}

function start() {
  addResponse();
  addResponse();
  $("form").addEventListener("submit", (event) => (event.preventDefault(), compare()));
  $("form").addEventListener("input", markStale);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("add").addEventListener("click", () => boxOf(addResponse()).focus());
  $("example").addEventListener("click", fillExample);
  $("copy").addEventListener("click", copyCurl);
  $("domain").addEventListener("change", showInstruction);
  $("key").addEventListener("change", loadModels);
  loadModels();
}

start();
