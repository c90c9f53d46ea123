// The last call in code, one tab a language.

import { addressOf, hasKey } from "./api.js";
import { snippets } from "./code.js";
import { $, announce, element } from "./dom.js";

let chosen = 0;
let shown = [];

export function mountSnippets() {
  $("copy").addEventListener("click", copy);
  $("languages").addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (step) choose((chosen + step + shown.length) % shown.length, { focus: true });
  });
}

export function showSnippets(path, body) {
  shown = snippets(path, body, { origin: addressOf("").replace(/\/$/, ""), needsKey: hasKey() });
  const tabs = shown.map(({ label }, index) => {
    const tab = element("button", { type: "button", id: `language-${index}`, textContent: label });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "snippet");
    tab.addEventListener("click", () => choose(index));
    return tab;
  });
  $("languages").replaceChildren(...tabs);
  choose(Math.min(chosen, shown.length - 1));
}

function choose(index, { focus = false } = {}) {
  chosen = index;
  [...$("languages").children].forEach((tab, at) => {
    tab.setAttribute("aria-selected", String(at === index));
    tab.tabIndex = at === index ? 0 : -1;
    if (focus && at === index) tab.focus();
  });
  $("snippet").textContent = shown[index].text;
  $("snippet").setAttribute("aria-labelledby", `language-${index}`);
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
    announce("Copied.");
  } catch {
    // There is no clipboard outside of HTTPS and localhost: select the text, so that the usual keys copy it.
    getSelection().selectAllChildren($("snippet"));
    announce("Selected; copy it with the keyboard.");
  }
}
