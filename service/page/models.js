// What is served: the line in the header, the pickers of domain and model, and the card of a model.

import { addressOf, call } from "./api.js";
import { $, choose, count, element, factOf, percent } from "./dom.js";

let served = [];

/** Ask the service what it serves, and show it. Throw Refused. */
export async function loadModels() {
  const { models } = (await call("v1/models")).reply;
  served = models;
  showServing(models.find((model) => model.default));
  showPickers();
  showDomains();
  showVersion();
}

const identityOf = ({ name, revision }) => `${name}@${revision}`;

/** Return the card of a model by its name or identity, of the default one without; of a cascade there is none. */
export function servedModel(name) {
  if (!name) return served.find((model) => model.default);
  return served.find((model) => model.name === name || identityOf(model) === name);
}

/** Call `changed` when another model is chosen. */
export function mountModels() {
  $("domain").addEventListener("change", showInstruction);
  $("options").addEventListener("change", ({ target }) => {
    if (target === $("model")) showSecond();
    showDomains();
  });
}

function showServing(model) {
  const button = element("button", { type: "button", className: "quiet", textContent: identityOf(model) });
  button.setAttribute("aria-haspopup", "dialog");
  button.addEventListener("click", () => showCard(model));
  const others = served.length > 1 ? ` and ${served.length - 1} more` : "";
  $("serving").replaceChildren(button, ...badgesOf(model), element("span", { className: "muted", textContent: others }));
}

function badgesOf({ demo, accuracy }) {
  const accurate = accuracy ? `${percent(accuracy.value)} accurate` : "";
  const text = [demo && "demo model", accurate].filter(Boolean).join(", ");
  return text ? [element("span", { className: demo ? "badge demo" : "badge", textContent: text })] : [];
}

function showCard(model) {
  const { accuracy, demo } = model;
  const kinds = { pair: "pairs of responses", response: "one response at a time", set: "sets of responses" };
  const facts = [
    ["Revision", model.revision],
    demo && ["Purpose", "demonstration", "Small, and made to try the service with. Serve a model of your own for real work."],
    accuracy && [
      "Accuracy",
      percent(accuracy.value),
      `Of ${count(accuracy.pairs)} validation pairs; 95 % interval ${percent(accuracy.low)} to ${percent(accuracy.high)}. Guessing has 50 %.`,
    ],
    ["Parameters", `${(model.parameters / 1e6).toFixed(1)} million`],
    ["Reads", kinds[model.reads]],
    ["Length", `${count(model.max_tokens)} tokens`, "Of one sequence. Longer texts are truncated."],
    ["Engine", `${model.engine}, ${model.precision}`],
    ["Temperature", model.temperature.toFixed(3), "What margins are divided by, so that probabilities mean what they say."],
    ...Object.entries(model.domains).map(([domain, instruction]) => [`Domain ${domain}`, instruction || "no instruction"]),
  ];
  $("card-title").textContent = model.name;
  $("card-facts").replaceChildren(...facts.filter(Boolean).map(factOf));
  $("card").showModal();
}

async function showVersion() {
  try {
    const response = await fetch(addressOf("page/service.json"));
    $("version").textContent = response.ok ? `TinyRM ${(await response.json()).version}` : "";
  } catch {
    $("version").textContent = "";
  }
}

// Pickers

function showPickers() {
  const chosen = [$("model").value, $("second-model").value];
  const names = served.map(({ name }) => name);
  $("model").replaceChildren(new Option("chosen by domain", ""), ...names.map((name) => new Option(name, name)));
  $("second-model").replaceChildren(new Option("none", ""), ...names.map((name) => new Option(name, name)));
  choose($("model"), chosen[0]);
  choose($("second-model"), chosen[1]);
  $("models").hidden = served.length < 2;
  showSecond();
}

/** Two models on one input: both must be named. */
function showSecond() {
  $("second").hidden = served.length < 2 || !$("model").value;
  if ($("second").hidden || $("second-model").value === $("model").value) choose($("second-model"), "");
  for (const option of $("second-model").options) option.disabled = option.value !== "" && option.value === $("model").value;
}

/** Show the domains of the named models, which all of them must have; of any model if the service chooses it. */
function showDomains() {
  const named = [$("model").value, $("second-model").value].filter(Boolean);
  const models = named.length ? named.map(servedModel).filter(Boolean) : served;
  if (!models.length) return;
  const chosen = $("domain").value || servedModel().default_domain;
  const all = [...new Set(models.flatMap((model) => Object.keys(model.domains)))];
  const domains = named.length ? all.filter((domain) => models.every((model) => domain in model.domains)) : all;
  $("domain").replaceChildren(...domains.map((domain) => optionOf(domain, models)));
  choose($("domain"), chosen);
  showInstruction();
}

/** Models may have different instructions for a domain; the service chooses the model, so then none is shown. */
function optionOf(domain, models) {
  const option = new Option(domain, domain);
  const wordings = new Set(models.map((model) => model.domains[domain]).filter(Boolean));
  option.dataset.instruction = wordings.size === 1 ? [...wordings][0] : "";
  return option;
}

function showInstruction() {
  const instruction = $("domain").selectedOptions[0]?.dataset.instruction;
  $("instruction").textContent = instruction ? `“${instruction}”` : "";
}
