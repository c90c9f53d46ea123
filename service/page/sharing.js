// A comparison outside of the form: in the address, in a link, in a file, in the list of earlier comparisons.

import { $, announce, element, plural } from "./dom.js";
import { MAX_FRAGMENT, decodeState, encodeState, exportResult, history as past } from "./share.js";

// What every browser and chat program takes as an address.
const MAX_ADDRESS = 8000;

let last = null;

/** Call `open` with a state that the form shall show, and with whether the history has its comparison already. */
export function mountSharing(open) {
  const buttons = { "Copy link": copyLink, "Export JSON": () => exportResult(last.state, last.replies) };
  for (const [text, run] of Object.entries(buttons)) {
    const button = element("button", { type: "button", className: "quiet", textContent: text });
    button.addEventListener("click", run);
    $("sharing").append(button);
  }
  $("clear-history").addEventListener("click", () => (past.clear(), showHistory(), announce("History cleared.")));
  $("entries").addEventListener("click", ({ target }) => {
    const entry = past.list().find(({ id }) => id === target.closest("li")?.dataset.id);
    if (!entry || !target.closest("button")) return;
    if (target.closest(".icon")) forget(entry.id);
    else open(entry.state, { isKept: true });
  });
  window.addEventListener("hashchange", async () => {
    const state = await stateInAddress();
    if (state) open(state);
  });
  showHistory();
}

export const stateInAddress = () => decodeState(location.hash);

/**
 * Keep a result for links and files; one that somebody asked for also in the address and, unless it came from there, in
 * the history: an entry that is opened stays where it is, so that nothing moves under the pointer.
 */
export async function keep(state, replies, summary, { isAsked, isKept }) {
  last = { state, replies };
  if (!isAsked) return;
  if (!isKept) {
    past.add(state, summary);
    showHistory();
  }
  const address = await addressOf(state);
  window.history.replaceState(null, "", address.length > MAX_ADDRESS ? await addressOf(null) : address);
}

async function addressOf(state) {
  return location.pathname + location.search + (state ? `#${await encodeState(state)}` : "");
}

async function copyLink() {
  const link = new URL(await addressOf(last.state), location.href).href;
  if (new URL(link).hash.length > MAX_FRAGMENT) return announce("The texts are too long for a link. Export JSON has them.");
  try {
    await navigator.clipboard.writeText(link);
    announce(`Link copied (${plural(link.length, "character")}). The texts are in it, and no server reads them there.`);
  } catch {
    window.history.replaceState(null, "", link);
    announce("The address of this page is the link now; copy it from there.");
  }
}

function showHistory() {
  const entries = past.list();
  $("history").hidden = entries.length === 0;
  $("history-count").textContent = entries.length;
  $("entries").replaceChildren(...entries.map(itemOf));
}

function itemOf({ id, at, state, summary }) {
  const { prompt } = state;
  const text = typeof prompt === "string" ? prompt : prompt.map(({ content }) => content).join(" ");
  const open = element(
    "button",
    { type: "button", className: "entry" },
    element("span", { className: "text", textContent: text.slice(0, 200) }),
    element("span", { className: "muted", textContent: `${summary}, ${new Date(at).toLocaleString()}` }),
  );
  const remove = element("button", { type: "button", className: "icon", textContent: "×" });
  remove.setAttribute("aria-label", `Remove from the history: ${text.slice(0, 60)}`);
  const item = element("li", {}, open, remove);
  item.dataset.id = id;
  return item;
}

function forget(id) {
  past.remove(id);
  showHistory();
  if (!$("history").hidden) $("history").querySelector("summary").focus();
  announce("Removed from the history.");
}
