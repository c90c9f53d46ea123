// The form: turns of the prompt, responses, and the state that both make.
//
// A state is {prompt: a text or [{role, content}], responses: [text], domain, models: [] for the default, or one or two}.

import { $, LETTERS, announce, choose, fromTemplate } from "./dom.js";

const boxOf = (one) => one.querySelector("textarea");

/** Call `changed` after every change of the form that a person made. */
export function mountForm(changed) {
  addTurn("user", "");
  addResponse();
  addResponse();
  $("turns").addEventListener("change", nameTurns);
  for (const part of ["turns", "responses", "options"]) $(part).addEventListener("input", changed);
  $("add-turn").addEventListener("click", () => (boxOf(addTurn(nextRole(), "")).focus(), changed()));
  $("add-system").addEventListener("click", () => (boxOf(addSystem()).focus(), changed()));
  $("add").addEventListener("click", () => (addEmptyResponse(), changed()));
  $("turns").addEventListener("click", ({ target }) => {
    if (target.closest("button")) (removeTurn(target.closest(".turn")), changed());
  });
  $("responses").addEventListener("click", ({ target }) => {
    if (target.closest(".head button")) (removeResponse(target.closest(".card")), changed());
  });
}

export function readState() {
  return {
    prompt: readPrompt(),
    responses: cards().map((card) => boxOf(card).value),
    domain: $("domain").value,
    models: [$("model").value, $("second-model").value].filter(Boolean),
  };
}

/** Fill the form. Return what the state names and this service does not have: "model x", "domain y". */
export function writeState({ prompt, responses, domain, models }) {
  const turns = typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt;
  $("turns").replaceChildren();
  turns.forEach(({ role, content }) => addTurn(role, content));
  $("responses").replaceChildren();
  [...responses, "", ""].slice(0, Math.max(2, responses.length)).forEach(addResponse);
  const [model = "", second = ""] = models ?? [];
  const missing = [];
  for (const [picker, name] of Object.entries({ model, "second-model": second })) {
    if (choose($(picker), name) || !name) continue;
    missing.push(`model ${name}`);
    choose($(picker), "");
  }
  $("model").dispatchEvent(new Event("change", { bubbles: true }));
  if (domain && !choose($("domain"), domain)) missing.push(`domain ${domain}`);
  $("domain").dispatchEvent(new Event("change", { bubbles: true }));
  return missing;
}

/** Show what is missing, and go to the first of it. Return whether nothing is. */
export function checkState() {
  const turns = [...$("turns").children].map(boxOf).filter((box) => box.value === "");
  const empty = cards().filter((card) => boxOf(card).value === "");
  $("form").querySelectorAll("[aria-invalid]").forEach((box) => box.removeAttribute("aria-invalid"));
  cards().forEach((card) => showProblem(card, ""));
  empty.forEach((card) => showProblem(card, cards().length > 2 ? "Write it, or remove it." : "Write it first."));
  const boxes = [...turns, ...empty.map(boxOf)];
  boxes.forEach((box) => box.setAttribute("aria-invalid", "true"));
  if (turns.length) announce("The prompt is empty.");
  else if (empty.length) announce(`Response ${LETTERS[cards().indexOf(empty[0])]} is empty.`);
  boxes[0]?.focus();
  return boxes.length === 0;
}

function showProblem(card, text) {
  const problem = card.querySelector(".problem");
  problem.textContent = text;
  problem.hidden = text === "";
}

// The prompt: one turn of the user is a text, anything else a list of messages

function readPrompt() {
  const turns = [...$("turns").children].map((turn) => ({
    role: turn.querySelector("select").value,
    content: boxOf(turn).value,
  }));
  return turns.length === 1 && turns[0].role === "user" ? turns[0].content : turns;
}

function addTurn(role, content) {
  const turn = fromTemplate("turn-form");
  choose(turn.querySelector("select"), role === "developer" ? "system" : role);
  boxOf(turn).value = content;
  $("turns").append(turn);
  nameTurns();
  return turn;
}

function addSystem() {
  const turn = addTurn("system", "");
  $("turns").prepend(turn);
  nameTurns();
  return turn;
}

const nextRole = () => ($("turns").lastElementChild?.querySelector("select").value === "user" ? "assistant" : "user");

function removeTurn(turn) {
  const at = [...$("turns").children].indexOf(turn);
  turn.remove();
  nameTurns();
  boxOf($("turns").children[Math.min(at, $("turns").children.length - 1)]).focus();
  announce("Turn removed.");
}

const TURNS = {
  system: "How the assistant is to behave",
  user: "A question or a task",
  assistant: "What the assistant replied",
  tool: "What the tool returned",
};

/** A prompt of one turn of the user needs no roles. */
function nameTurns() {
  const turns = [...$("turns").children];
  const isText = turns.length === 1 && turns[0].querySelector("select").value === "user";
  turns.forEach((turn, index) => {
    const name = turns.length === 1 ? "Prompt" : `Turn ${index + 1}`;
    boxOf(turn).id = index ? `turn-${index + 1}` : "prompt";
    boxOf(turn).setAttribute("aria-label", name);
    boxOf(turn).placeholder = TURNS[turn.querySelector("select").value];
    turn.querySelector("select").hidden = isText;
    turn.querySelector("select").setAttribute("aria-label", `Role of turn ${index + 1}`);
    turn.querySelector("button").hidden = turns.length === 1;
    turn.querySelector("button").setAttribute("aria-label", `Remove turn ${index + 1}`);
  });
}

// Responses. A card keeps its letter wherever it stands: a ranking sorts the cards, the state has them by letter

export const cards = () => [...$("responses").children].sort((one, other) => one.dataset.at - other.dataset.at);

function addResponse(text = "") {
  const card = fromTemplate("response-form");
  boxOf(card).value = text;
  card.dataset.at = $("responses").children.length;
  $("responses").append(card);
  nameResponses();
  return card;
}

export function addEmptyResponse() {
  if (cards().length < LETTERS.length) boxOf(addResponse()).focus();
}

function removeResponse(card) {
  const at = Number(card.dataset.at);
  card.remove();
  nameResponses();
  boxOf(cards()[Math.min(at, cards().length - 1)]).focus();
  announce(`Response ${LETTERS[at]} removed.`);
}

/** Name the cards without a gap: A, B, C. */
function nameResponses() {
  const all = cards();
  all.forEach((card, index) => {
    const [letter, label, remove] = [LETTERS[index], card.querySelector("label"), card.querySelector(".head button")];
    card.dataset.at = index;
    label.htmlFor = boxOf(card).id = `response-${letter}`;
    label.id = `name-${letter}`;
    label.textContent = `Response ${letter}`;
    card.setAttribute("aria-labelledby", label.id);
    const [shown, problem] = [card.querySelector(".shown"), card.querySelector(".problem")];
    shown.setAttribute("role", "region");
    shown.setAttribute("aria-labelledby", label.id);
    problem.id = `problem-${letter}`;
    boxOf(card).setAttribute("aria-describedby", problem.id);
    remove.setAttribute("aria-label", `Remove response ${letter}`);
    remove.hidden = all.length <= 2;
  });
  $("responses").classList.toggle("two", all.length === 2);
  $("add").disabled = all.length >= LETTERS.length;
  sortCards(all.map((_, index) => index));
}

/** Put the cards into an order of their letters. The one with the focus keeps it. */
export function sortCards(order) {
  const [all, focused] = [cards(), document.activeElement];
  const sorted = order.map((index) => all[index]);
  if (sorted.every((card, place) => $("responses").children[place] === card)) return;
  $("responses").append(...sorted);
  if ($("responses").contains(focused)) focused.focus({ preventScroll: true });
}
