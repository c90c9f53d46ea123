/**
 * Score many comparisons with calls of v1/compare/batch: a few at a time, more as the service is quick, again while it is
 * busy, and in halves where a call was too large for it.
 */

const FIRST_ITEMS = 4;
const MAX_ITEMS = 64;
const MAX_CHARACTERS = 1_000_000; // of a call
const CALLS = 2; // at the same time
const [SHORT_MS, LONG_MS] = [1000, 4000]; // of a call: below, the next one is larger; above, smaller
const MAX_TRIES = 15;
const MAX_PAUSE_S = 8;
const BUSY = new Set([
  ...["overloaded", "unavailable", "engine_restarting", "shutting_down", "not_ready", "too_many_connections"],
  ...["no_reply", "status_429", "status_502", "status_503", "status_504"],
]);
const TOO_MUCH = new Set(["body_too_large", "status_413", "invalid_request", "deadline_exceeded", "invalid_json"]);

/**
 * Score lines, each with an `item`, and resolve when all have a result.
 *
 * call: as in api.js. onResults: called with [[line, result], ...], a result being a reply or {error}. onPause: called
 * with the seconds until the next try, and 0 when it begins. signal: ends it.
 *
 * Throw what `call` throws for an error that any line would have.
 */
export async function scoreLines(lines, { call, onResults, onPause, signal }) {
  const size = { items: FIRST_ITEMS, most: MAX_ITEMS };
  const failed = new AbortController();
  const run = { call, size, onPause, signal: AbortSignal.any([signal, failed.signal]) };
  let next = 0;
  const work = async () => {
    while (next < lines.length) {
      const batch = take(lines, next, size.items);
      next += batch.length;
      onResults(await scoreBatch(batch, run));
    }
  };
  const workers = Array.from({ length: CALLS }, async () => {
    try {
      await work();
    } catch (error) {
      failed.abort();
      throw error;
    }
  });
  const ends = await Promise.allSettled(workers);
  const errors = ends.filter((end) => end.status === "rejected").map((end) => end.reason);
  if (errors.length) throw errors.find((error) => error.name !== "AbortError") ?? errors[0];
}

/** Return the next lines: as many as a call may have, of as many characters. */
function take(lines, start, items) {
  let [end, characters] = [start, 0];
  while (end < lines.length && end - start < items) {
    characters += JSON.stringify(lines[end].item).length;
    if (end > start && characters > MAX_CHARACTERS) break;
    end += 1;
  }
  return lines.slice(start, end);
}

/** Return [[line, result], ...]. */
async function scoreBatch(batch, run) {
  const results = new Map();
  let missing = batch;
  for (let tries = 1; missing.length; tries += 1) {
    try {
      const begun = performance.now();
      const { reply } = await run.call("v1/compare/batch", { items: missing.map((line) => line.item) }, run.signal);
      learn(run.size, missing.length, performance.now() - begun);
      reply.results.forEach((result, at) => results.set(missing[at], result));
      const busy = missing.filter((line) => BUSY.has(results.get(line).error?.type));
      if (!busy.length) break;
      missing = busy;
      await pause(tries, results.get(busy[0]).error, run);
    } catch (error) {
      if (TOO_MUCH.has(error.type)) return [...results, ...(await scoreHalves(missing, error, run))];
      if (!BUSY.has(error.type)) throw error;
      await pause(tries, error, run);
    }
  }
  return batch.map((line) => [line, results.get(line)]);
}

/** Score what was too much for one call in two. A line that is too much alone has that error. */
async function scoreHalves(batch, error, run) {
  if (batch.length === 1) return [[batch[0], { error: { type: error.type, message: error.message } }]];
  const middle = batch.length >> 1;
  run.size.items = run.size.most = Math.min(run.size.most, middle);
  const halves = [batch.slice(0, middle), batch.slice(middle)];
  return [...(await scoreBatch(halves[0], run)), ...(await scoreBatch(halves[1], run))];
}

function learn(size, items, ms) {
  if (ms > LONG_MS) size.items = Math.max(1, Math.min(size.items, items >> 1));
  else if (ms < SHORT_MS && items >= size.items) size.items = Math.min(size.most, 2 * size.items);
}

/** Wait as long as the service asks for, and at least a random time that grows. Throw the error after many tries. */
async function pause(tries, error, { onPause, signal }) {
  if (tries >= MAX_TRIES) throw error;
  const seconds = Math.max(error.retryAfter ?? 0, Math.random() * Math.min(MAX_PAUSE_S, 2 ** tries / 4));
  onPause(seconds);
  await new Promise((resolve, reject) => {
    const end = () => (clearTimeout(timer), reject(new DOMException("The calls were ended.", "AbortError")));
    const timer = setTimeout(() => (signal.removeEventListener("abort", end), resolve()), 1000 * seconds);
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });
  onPause(0);
}
