// How responses are shown: as text to write, as Markdown, or with the words in which two of them differ.

import { $ } from "./dom.js";
import { cards } from "./form.js";
import { renderDiff } from "./diff.js";
import { renderMarkdown } from "./markdown.js";

let view = "write";

const buttons = () => [...$("views").querySelectorAll("button")];

export function mountViews() {
  $("views").addEventListener("click", ({ target }) => target.dataset.view && chooseView(target.dataset.view));
}

export function chooseView(name) {
  view = name;
  showView();
}

export function nextView() {
  const names = buttons().filter((button) => !button.disabled).map((button) => button.dataset.view);
  chooseView(names[(names.indexOf(view) + 1) % names.length]);
}

/** Show the texts as they are now. Differences are those of two responses; an empty one is there to be written. */
export function showView() {
  const all = cards();
  const texts = all.map((card) => card.querySelector("textarea").value);
  const possible = { write: true, rendered: !texts.includes(""), differences: !texts.includes("") && all.length === 2 };
  if (!possible[view]) view = "write";
  for (const button of buttons()) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
    button.disabled = !possible[button.dataset.view];
  }
  const shown = { write: () => [], rendered: () => texts.map(renderMarkdown), differences: () => renderDiff(...texts) };
  const fragments = shown[view]();
  all.forEach((card, index) => {
    const place = card.querySelector(".shown");
    card.querySelector("textarea").hidden = view !== "write";
    place.hidden = view === "write";
    place.className = `shown ${view === "differences" ? "diff" : "markdown"}`;
    place.replaceChildren(fragments[index] ?? "");
  });
}
