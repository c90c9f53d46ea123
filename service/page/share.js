/**
 * Keep the form's texts outside of the page: in a link, in the browser's history of comparisons, and in a file.
 *
 * A link has them in its fragment, which a browser never sends to a server. What a fragment or the storage holds is
 * untrusted: it is a state in every part, or nothing at all.
 */

const COMPRESSED = "z.";
const PLAIN = "j.";
export const MAX_FRAGMENT = 2_000_000; // characters
const MAX_BYTES = 8 * 2 ** 20; // of a state as JSON, however small it is compressed
const MAX_RESPONSES = 26;
const MAX_TURNS = 1000;
const ROLES = ["system", "user", "assistant", "tool"];

// A link

/** Return a state as a fragment without its #, by a promise: browsers compress in the background. */
export async function encodeState(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(cleaned(state)));
  if (typeof CompressionStream !== "function") return PLAIN + toBase64(bytes);
  return COMPRESSED + toBase64(await through(bytes, new CompressionStream("deflate-raw"), Infinity));
}

/** Return the state of a fragment, by a promise; null if it holds none. */
export async function decodeState(fragment) {
  const text = fragment.replace(/^#/, "");
  const isCompressed = text.startsWith(COMPRESSED);
  if (text.length > MAX_FRAGMENT || !(isCompressed || text.startsWith(PLAIN))) return null;
  try {
    const bytes = fromBase64(text.slice(COMPRESSED.length));
    const json = isCompressed ? await through(bytes, new DecompressionStream("deflate-raw"), MAX_BYTES) : bytes;
    return cleaned(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json)));
  } catch {
    return null;
  }
}

/** Return bytes as a stream changes them. Throw RangeError as soon as there are too many, whatever would follow. */
async function through(bytes, stream, maxBytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
  const chunks = [];
  let size = 0;
  for (let chunk; !(chunk = await reader.read()).done; chunks.push(chunk.value)) {
    size += chunk.value.length;
    if (size <= maxBytes) continue;
    await reader.cancel();
    throw new RangeError(`more than ${maxBytes} bytes`);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** In the alphabet for addresses; piece by piece, because a call takes a limited number of arguments. */
function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

const fromBase64 = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));

/** Return a copy of a state that holds what a form can hold and nothing else. Throw TypeError for anything else. */
function cleaned({ prompt, responses, domain = "", models = [] }) {
  const isState =
    (isText(prompt) || (isList(prompt, 1, MAX_TURNS) && prompt.every(isTurn))) &&
    isList(responses, 1, MAX_RESPONSES) &&
    responses.every(isText) &&
    isText(domain) &&
    isList(models, 0, 2) &&
    models.every(isText);
  if (!isState) throw new TypeError("not a state of the form");
  const turns = isText(prompt) ? prompt : prompt.map(({ role, content }) => ({ role, content }));
  return { prompt: turns, responses: [...responses], domain, models: [...models] };
}

const isText = (value) => typeof value === "string";
const isList = (value, least, most) => Array.isArray(value) && value.length >= least && value.length <= most;
const isTurn = (turn) => ROLES.includes(turn?.role) && isText(turn.content);

// History

const PLACE = "tinyrm.history";
const MAX_ENTRIES = 50;
const MAX_CHARACTERS = 2_000_000; // a browser keeps about 5 million

/**
 * The comparisons of this browser, newest first: [{id, at, state, summary}]. They are in its storage, or, where that is
 * denied, in this page until it is closed.
 */
export const history = {
  /** Add a state with a line about its result, and return its entry. The same texts are there once. */
  add(state, summary = "") {
    const entry = { id: crypto.randomUUID?.() ?? String(Math.random()), at: Date.now(), state: cleaned(state), summary };
    const texts = JSON.stringify(entry.state);
    write([entry, ...read().filter((other) => JSON.stringify(other.state) !== texts)]);
    return entry;
  },
  list: () => read(),
  remove: (id) => write(read().filter((entry) => entry.id !== id)),
  clear: () => write([]),
};

let inPage = null; // null as long as the storage can be used

function read() {
  try {
    const entries = inPage ?? JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    return entries.flatMap(checked);
  } catch {
    return [];
  }
}

/** Return a list with the entry, or an empty one if it is none: another version, or a person, may have written it. */
function checked(entry) {
  try {
    const { id, at, state, summary } = entry;
    const isEntry = isText(id) && Number.isFinite(at) && isText(summary);
    return isEntry ? [{ id, at, state: cleaned(state), summary }] : [];
  } catch {
    return [];
  }
}

/** Keep as many of the newest entries as there is room for. */
function write(entries) {
  let kept = entries.slice(0, MAX_ENTRIES);
  while (kept.length > 1 && JSON.stringify(kept).length > MAX_CHARACTERS) kept = kept.slice(0, -1);
  if (inPage) return void (inPage = kept);
  for (; ; kept = kept.slice(0, -1)) {
    try {
      if (kept.length) localStorage.setItem(PLACE, JSON.stringify(kept));
      else localStorage.removeItem(PLACE);
      return;
    } catch {
      if (kept.length) continue; // full: without the oldest one it may fit
      inPage = entries.slice(0, MAX_ENTRIES);
      return;
    }
  }
}

// Files

/** Save a comparison with its reply as a JSON file. */
export function exportResult(state, result) {
  const content = { made: new Date().toISOString(), state: cleaned(state), result };
  download("tinyrm-result.json", "application/json", [JSON.stringify(content, null, 2), "\n"]);
}

/** Save texts as a file of the browser's downloads. */
export function download(name, type, texts) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(texts, { type }));
  link.download = name;
  link.click();
  // The browser may read it after the click; a minute later it has.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
