// What the models replied: the verdict, how sure it is, and which response it is about.

import { $, LETTERS, count, element, factOf, fromTemplate, percent, signed } from "./dom.js";
import { cards, sortCards } from "./form.js";
import { servedModel } from "./models.js";

/**
 * Show the results on a state: of each chosen model, or of one if the other's call failed.
 * Return the index of the best for each, null if too close.
 */
export function showResults(state, results) {
  const isPair = state.responses.length === 2;
  const isNamed = state.models.length > 1;
  const verdicts = results.map(({ reply }) => (isPair ? verdictOfPair(reply) : verdictOfRanking(reply)));
  const columns = results.map(({ reply }, index) => column(reply, verdicts[index], isPair, isNamed));
  $("verdicts").replaceChildren(...columns);
  $("facts").replaceChildren(...results.map(factsOf));
  markCards(results, verdicts, isPair, isNamed);
  $("result").hidden = $("after").hidden = false;
  setStale(false);
  return verdicts.map(({ sure, best }) => (sure === "close" ? null : best));
}

/** Dim the result if it is not the one of the form; `why` says so. */
export function setStale(isStale, why = "The form has changed since this result.") {
  if ($("result").hidden) return;
  $("stale").hidden = !isStale;
  $("stale").textContent = why;
  $("result").classList.toggle("stale", isStale);
  $("responses").classList.toggle("stale", isStale);
}

export function hideResult() {
  $("result").hidden = $("after").hidden = true;
  $("verdicts").replaceChildren();
  for (const card of cards()) clearMarks(card);
}

/** Return the verdicts in one sentence. */
export function spoken() {
  return [...$("verdicts").querySelectorAll("h3")].map((heading) => heading.textContent).join("; ");
}

// Verdicts: {sure: close, leaning or clear; best: index; title; why}

function verdictOfPair(reply) {
  const { preferred, probability_a, probability_b, confidence: sure } = reply;
  const best = preferred === "b" ? 1 : 0;
  const shares = [probability_a, probability_b].map((share) => Math.round(100 * share));
  if (shares[0] + shares[1] !== 100) shares[1] = 100 - shares[0];
  const letter = LETTERS[best];
  const titles = { close: `Too close to call (${shares.join(" : ")})`, leaning: `Leans ${letter}`, clear: `Clearly ${letter}` };
  const better =
    preferred === "tie"
      ? "Both have the same probability to be better"
      : `${letter} is better with a probability of ${percent(Math.max(probability_a, probability_b))}`;
  return { sure, best, title: titles[sure], why: `${better}${basisOfPair(reply)}.` };
}

function basisOfPair(reply) {
  const { orders } = reply;
  const card = servedModel(reply.model);
  if (card?.reads === "response" || card?.scores_alone) return ", from the score of each response by itself";
  if (card?.reads === "set") return ", from both responses beside each other";
  if (!orders || orders.b_first === null) return "";
  const [first, second] = [orders.a_first, orders.b_first];
  return (first - 0.5) * (second - 0.5) < 0
    ? ". The two orders disagree: the model prefers another response when they change places"
    : ", and both orders agree";
}

/**
 * The best of a ranking against the next, with the limits that the service has for a pair (docs/how-it-works.md).
 * A difference within one standard error is never clear.
 */
function verdictOfRanking(reply) {
  const { order, strengths, standard_errors } = reply;
  const [best, next] = order;
  const error = Math.hypot(standard_errors[best] ?? 0, standard_errors[next] ?? 0);
  const lead = strengths[best] - strengths[next];
  const odds = chance(lead);
  const sure = odds < 0.55 ? "close" : odds < 0.75 || lead < error ? "leaning" : "clear";
  const titles = {
    close: `Too close to call: ${LETTERS[best]} or ${LETTERS[next]}`,
    leaning: `Leans ${LETTERS[best]}`,
    clear: `Clearly ${LETTERS[best]}`,
  };
  const doubt = lead < error ? "; this lead is within one standard error" : "";
  const why = `${LETTERS[best]} beats ${LETTERS[next]}, the next, with a probability of ${percent(odds)}${doubt}. ${basisOfRanking(reply)}`;
  return { sure, best, title: titles[sure], why };
}

const chance = (difference) => 1 / (1 + Math.exp(-difference));

function basisOfRanking(reply) {
  if (reply.comparisons) return `${count(reply.comparisons)} comparisons of ${reply.order.length} responses, each in both orders.`;
  return servedModel(reply.model)?.scores_alone
    ? `Each of ${reply.order.length} responses was scored by itself.`
    : `All ${reply.order.length} responses were read beside each other.`;
}

// A column for each model

function column(reply, verdict, isPair, isNamed) {
  const one = fromTemplate("verdict");
  one.classList.add(verdict.sure, `best-${LETTERS[verdict.best]}`);
  one.querySelector(".by").textContent = isNamed ? reply.model : "";
  one.querySelector("h3").textContent = verdict.title;
  one.querySelector(".why").textContent = verdict.why;
  one.querySelector(isPair ? ".ranking" : ".pair").remove();
  if (isPair) fillPair(one, reply);
  else fillRanking(one, reply);
  return one;
}

const setShare = (bar, share) => bar.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);

function fillPair(one, { probability_a, probability_b, orders }) {
  one.querySelector(".share-a").textContent = `A ${percent(probability_a)}`;
  one.querySelector(".share-b").textContent = `B ${percent(probability_b)}`;
  setShare(one.querySelector(".pair > .bar"), probability_a);
  const rows = Object.entries({ "A first": orders?.a_first, "B first": orders?.b_first });
  const scored = rows.filter(([, share]) => typeof share === "number");
  one.querySelector(".orders").replaceChildren(...scored.map(([name, share]) => orderRow(name, share)));
}

function orderRow(name, share) {
  const row = fromTemplate("order-row");
  row.querySelector(".name").textContent = name;
  row.querySelector(".figure").textContent = `A ${percent(share)}`;
  setShare(row.querySelector(".bar"), share);
  return row;
}

function fillRanking(one, { order, strengths, standard_errors }) {
  const errors = standard_errors.map((error) => error ?? 0);
  const axis = axisOf(strengths, errors);
  const rows = order.map((index, place) => {
    const row = rankRow(index, strengths[index], errors[index], axis);
    const next = order[place + 1];
    if (next !== undefined)
      row.querySelector(".odds").textContent = `${percent(chance(strengths[index] - strengths[next]))} to beat ${LETTERS[next]}`;
    return row;
  });
  one.querySelector(".ranks").replaceChildren(...rows);
}

/** Return a function from strength to place in percent, with room for every whisker. */
function axisOf(strengths, errors) {
  const low = Math.min(...strengths.map((strength, i) => strength - errors[i]));
  const high = Math.max(...strengths.map((strength, i) => strength + errors[i]));
  return (strength) => `${high > low ? 3 + (94 * (strength - low)) / (high - low) : 50}%`;
}

function rankRow(index, strength, error, axis) {
  const row = fromTemplate("rank-row");
  row.querySelector(".name").textContent = `Response ${LETTERS[index]}`;
  row.querySelector(".figure").textContent = `${signed(strength)} ± ${error.toFixed(2)}`;
  const places = { "--at": strength, "--from": strength - error, "--to": strength + error, "--zero": 0 };
  for (const [property, value] of Object.entries(places)) row.style.setProperty(property, axis(value));
  return row;
}

// Marks on the cards

function markCards(results, verdicts, isPair, isNamed) {
  const bests = verdicts.map(({ sure, best }) => (sure === "close" ? null : best));
  const agreed = bests.every((best) => best === bests[0]) ? bests[0] : null;
  cards().forEach((card, index) => {
    clearMarks(card);
    card.classList.toggle("winner", index === agreed);
    const badges = results.map(({ reply }) => badge(reply, index, isPair, isNamed));
    if (index === agreed) badges.unshift(element("span", { className: "badge best", textContent: isPair ? "★ better" : "★ best" }));
    card.querySelector(".badges").replaceChildren(...badges);
  });
  sortCards(isPair ? [0, 1] : results[0].reply.order);
}

function clearMarks(card) {
  card.classList.remove("winner");
  card.querySelector(".badges").replaceChildren();
}

function badge(reply, index, isPair, isNamed) {
  const value = isPair
    ? percent(index ? reply.probability_b : reply.probability_a)
    : `${reply.order.indexOf(index) + 1} of ${reply.order.length}`;
  const by = isNamed ? `${reply.model.split("@")[0]}: ` : "";
  return element("span", { className: "badge", textContent: by + value });
}

// Facts of the call

function factsOf({ reply, roundTripMs, serviceMs }) {
  const { usage, comparisons, cycle_rate: cycles } = reply;
  const facts = [
    ["Model", reply.model, "Name and revision: the same revision always returns the same numbers."],
    ["Round trip", `${roundTripMs.toFixed(1)} ms`, serviceMs === null ? "From this browser." : `Of these, ${serviceMs.toFixed(1)} ms in the service.`],
    [
      "Compute",
      `${usage.gflops.toFixed(2)} GFLOPs`,
      `Billions of floating-point operations, for ${count(usage.tokens)} tokens in ${count(usage.sequences)} sequence${usage.sequences === 1 ? "" : "s"}.`,
    ],
    comparisons > 0 && ["Comparisons", count(comparisons), "Pairs of responses that were compared with each other."],
    comparisons > 0 && cycles != null && ["Cycles", percent(cycles), "Of all triples, those in which A beats B, B beats C and C beats A. 0 is consistent."],
  ];
  return element("dl", { className: "facts" }, ...facts.filter(Boolean).map(factOf));
}
