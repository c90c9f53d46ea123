// Calls of this service. The key lives in this module only: no storage, no address and no snippet contains it.

let key = "";

/** Send this key with every later call; "" for none. */
export function useKey(text) {
  key = text.trim();
}

export const hasKey = () => key !== "";

/** An error that the service, or a proxy before it, returned. `retryAfter` is in seconds, or null. */
export class Refused extends Error {
  constructor(type, message, retryAfter = null) {
    super(message);
    this.type = type;
    this.retryAfter = retryAfter;
  }
}

/** Return the full address of a path of the service, which may lie below a prefix of a proxy. */
export const addressOf = (path) => new URL(path, document.baseURI).href;

/**
 * Call the service: POST if there is a body, GET otherwise. Return {reply, roundTripMs, serviceMs}.
 * Throw Refused, or an AbortError if `signal` has ended the call.
 */
export async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  // A browser sends no such header, and its error would be about the header and not about the key.
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Refused("unauthorized", "The key has a character that no key has; copy it again.");
  const begun = performance.now();
  try {
    const response = await fetch(addressOf(path), { ...options, headers, signal });
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
  return new Refused(type, message, secondsOf(response.headers.get("Retry-After")));
}

/** Read Retry-After: seconds, or a date. */
function secondsOf(header) {
  if (header === null) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

/** Return the service's own time, from its Server-Timing header. */
function serviceMs(response) {
  const total = /\btotal;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
  return total && Number(total[1]);
}
