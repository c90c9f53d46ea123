// How many tokens the texts have, while they are typed, and what a model would not see.

import { Refused, call } from "./api.js";
import { $, LETTERS, count, plural } from "./dom.js";
import { cards, readState } from "./form.js";
import { servedModel } from "./models.js";

const PAUSE_MS = 350;

let timer = 0;
let counting = new AbortController();
let isMissing = false;

/** Count the tokens of the form once nobody types. A service that does not count is asked once. */
export function countSoon() {
  clearTimeout(timer);
  counting.abort();
  if (!isMissing) timer = setTimeout(countNow, PAUSE_MS);
}

async function countNow() {
  const { signal } = (counting = new AbortController());
  const state = readState();
  const { prompt, responses, domain, models } = state;
  const body = { prompt, responses, ...(domain && { domain }), ...(models[0] && { model: models[0] }) };
  try {
    const { reply } = await call("v1/tokens", body, signal);
    showCounts(reply);
    showTruncated(partsOf(reply.truncated), state, { isResult: false });
  } catch (error) {
    // Nobody asked for this call, so nobody reads about its errors.
    if (error instanceof Refused && ["not_found", "method_not_allowed"].includes(error.type)) isMissing = true;
    if (error.name !== "AbortError") forgetCounts();
  }
}

function showCounts({ prompt, responses, longest_sequence: longest, max_tokens: limit }) {
  $("prompt-tokens").textContent = plural(prompt, "token");
  cards().forEach((card, index) => (card.querySelector(".tokens").textContent = plural(responses[index], "token")));
  $("length").textContent = `${count(longest)} / ${count(limit)} tokens`;
  $("length").classList.toggle("over", longest > limit);
}

function forgetCounts() {
  for (const place of document.querySelectorAll(".tokens")) place.textContent = "";
}

/** Return [[index of a response, or -1 for the prompt, tokens]] of texts that are not seen as a whole. */
export function partsOf(truncated) {
  const { prompt, response_a, response_b, responses = [response_a, response_b] } = truncated;
  return [prompt, ...responses].map((tokens, index) => [index - 1, tokens]).filter(([, tokens]) => tokens > 0);
}

/** Show which texts are too long. total: of all texts, where a reply does not say of which. */
export function showTruncated(parts, { domain, models }, { isResult, total = 0 }) {
  const card = servedModel(models[0]);
  const kept = card?.truncation?.[domain || card.default_domain];
  const texts = parts.map(([index, tokens]) => {
    const lost = index < 0 ? "its beginning" : kept === "ends" ? "its middle" : "its end";
    return `${plural(tokens, "token")} of ${index < 0 ? "the prompt" : `response ${LETTERS[index]}`} (${lost})`;
  });
  if (!texts.length && total) texts.push(plural(total, "token"));
  const limit = card ? `It reads ${count(card.max_tokens)} tokens at a time. ` : "";
  const verb = isResult ? "did not see" : "will not see";
  $("truncated").hidden = texts.length === 0;
  $("truncated").textContent = texts.length ? `The model ${verb} ${listOf(texts)}. ${limit}Shorten the text to be sure.` : "";
}

const listOf = (texts) => new Intl.ListFormat("en").format(texts);
