/**
 * Read lines of JSON as pairs of responses, in the forms that `tinyrm score` reads: what is read here is scored the
 * same there. A form that only the command line reads, such as texts in a chat template, is refused, never guessed.
 */

const OWN = ["response_a", "response_b"];
const PREFERENCES = [["chosen", "rejected"], ["chosen_response", "rejected_response"], ["response_j", "response_k"]];
const PROMPTS = ["prompt", "question", "instruction", "query"];
const HISTORIES = ["conversations", "messages", "trajectory"];
const SYSTEMS = ["system", "system_prompt"];
const OPTIONS = ["domain", "instruction", "swap"];
const ROLES = {
  ...{ system: "system", developer: "system", user: "user", human: "user", prompter: "user" },
  ...Object.fromEntries(["assistant", "model", "ai", "gpt", "chatgpt", "bot"].map((name) => [name, "assistant"])),
  ...Object.fromEntries(["tool", "function", "observation", "ipython", "environment"].map((name) => [name, "tool"])),
  ...{ function_call: "assistant", tool_call: "assistant" },
};
const WINNERS = { a: "a", b: "b", tie: "tie", draw: "tie", both: "tie", neither: "tie" };
const WRITTEN_MESSAGES = /^\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:/;
const TRANSCRIPT = /(?:^|\n\n)(Human|Assistant):/;
// How texts in a chat template begin.
const TEMPLATE =
  /^(?:<bos>|<s>|<\|begin_of_text\|>|\[gMASK\]|<sop>|<BOS_TOKEN>|\[BOS\]|\s)*(?:<\|(?:im_|start|header_start|turn>|(?:system|user|assistant|observation)\|>|START_OF_TURN)|<start_of_turn>|<seed:bos>|\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|<｜)|<｜User｜>/;
const MAX_DEPTH = 100; // of the fields of a line
const MIN_REPEATED_WORDS = 3;
const OTHER_FORMATS = [
  [[0xff, 0xfe], "text in UTF-16; save it as UTF-8"],
  [[0xfe, 0xff], "text in UTF-16; save it as UTF-8"],
  [[0x1f, 0x8b], "compressed with gzip; decompress it first"],
  [[0xfd, 0x37, 0x7a], "compressed with xz; decompress it first"],
  [[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd; decompress it first"],
  [[0x50, 0x4b, 0x03, 0x04], "a zip archive; extract it first"],
  [[0x50, 0x41, 0x52, 0x31], "Parquet; write it as JSON lines, or use `tinyrm score --bundle`"],
];

/** A line or a file that cannot be read; the message states why. */
export class Unreadable extends Error {}

/** Yield the lines of a file as bytes, without blank lines at the end. Throw Unreadable for a file of another format. */
export function* splitLines(bytes) {
  const other = OTHER_FORMATS.find(([mark]) => mark.every((byte, at) => bytes[at] === byte));
  if (other) throw new Unreadable(`This is not JSON lines in UTF-8: it is ${other[1]}.`);
  let end = bytes.length;
  while (end && bytes[end - 1] <= 0x20) end -= 1;
  for (let start = 0; start < end; ) {
    const next = bytes.indexOf(10, start);
    const stop = next < 0 || next > end ? end : next;
    yield bytes.subarray(start, stop);
    start = stop + 1;
  }
}

/**
 * Return {text, fields, item, label, error} of a line: its text and fields, what is sent for it, and which response a
 * person prefers: a, b, tie, or null. For a line that is not a pair there is an error in place of the item.
 */
export function readLine(bytes, number) {
  const line = { number, text: "", fields: null, item: null, label: null, error: null };
  try {
    line.text = decode(bytes);
    line.fields = parse(line.text);
    line.item = readPair(line.fields);
    line.label = labelOf(line.fields);
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    line.item = null;
    line.error = { type: "invalid_request", message: `line ${number}: ${error.message}` };
  }
  return line;
}

function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes).trim(); // without a byte order mark
  } catch {
    throw new Unreadable("not text in UTF-8");
  }
}

function parse(text) {
  let fields;
  try {
    fields = JSON.parse(text);
  } catch (error) {
    throw new Unreadable(text ? `not JSON: ${error.message.slice(0, 200)}` : "not JSON: the line is blank");
  }
  if (!isObject(fields)) {
    const hint = Array.isArray(fields) ? " (a list of rows must be one row on each line)" : "";
    throw new Unreadable(`not a JSON object${hint}`);
  }
  if (depthOf(fields) > MAX_DEPTH) throw new Unreadable(`nests deeper than ${MAX_DEPTH} levels`);
  return fields;
}

/** Return how deep a value nests, without recursion. */
function depthOf(value) {
  let [depth, level] = [0, [value]];
  for (; depth <= MAX_DEPTH; depth += 1) {
    level = level.flatMap((outer) => (typeof outer === "object" && outer !== null ? Object.values(outer) : []));
    if (!level.length) break;
  }
  return depth;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const has = (fields, name) => Object.hasOwn(fields, name);

// A pair

function readPair(fields) {
  const names = findResponses(fields);
  const column = PROMPTS.find((name) => has(fields, name));
  const responses = names.map((name) => present(fields, name));
  const prompt = column && present(fields, column);
  const texts = names === OWN ? readOwn(prompt, responses, names) : readPreference(fields, column, prompt, responses, names);
  const item = { prompt: texts.prompt, response_a: texts.responses[0], response_b: texts.responses[1] };
  for (const name of OPTIONS) {
    const value = name === "instruction" && column === "instruction" ? null : fields[name] ?? null;
    if (value !== null && !isText(value)) throw new Unreadable(`${name}: must be a text`);
    if (value !== null) item[name] = value;
  }
  return item;
}

/** Return the names of the columns with the responses; of a preference the chosen one is first, as response A. */
function findResponses(fields) {
  const known = [OWN, ...PREFERENCES];
  const keys = `this line has the keys ${Object.keys(fields).slice(0, 20).join(", ").slice(0, 400) || "(none)"}`;
  const names = known.find((pair) => pair.every((name) => has(fields, name)));
  if (names === OWN && !has(fields, "prompt")) throw new Unreadable(`prompt is missing; ${keys}`);
  if (names) return names;
  const half = known.find((pair) => pair.some((name) => has(fields, name)));
  const missing = half ? `${half.find((name) => !has(fields, name))} is missing` : "no two responses";
  throw new Unreadable(`${missing}: a pair has a prompt, and chosen and rejected, or response_a and response_b; ${keys}`);
}

/** Return the text or the turns in a column. */
function present(fields, name) {
  const value = fields[name];
  if (isText(value)) return value;
  const turns = isObject(value) ? [value] : value;
  if (!Array.isArray(turns)) throw new Unreadable(`${name} must be a text or a list of messages`);
  if (!turns.length) throw new Unreadable(`${name} holds no messages`);
  return turns;
}

/** Read a pair in the form of the API, in which texts are what they are. */
function readOwn(prompt, values, names) {
  const responses = values.map((value, at) => turnsOf(value, names[at]));
  if (responses.some(hasUser)) return split(responses, names, prompt, "prompt");
  return { prompt: isText(prompt) ? prompt : withText(turnsOf(prompt, "prompt")), responses: joined(responses, names) };
}

function readPreference(fields, column, prompt, values, names) {
  const given = parseMessages(prompt, column);
  if (values.every(isText)) values = takeApart(values, names, given);
  const responses = values.map((value, at) => turnsOf(value, names[at]));
  if (responses.some(hasUser)) return split(responses, names, given, column);
  const [start, name] = given === undefined ? findHistory(fields, names, values) : [given, column];
  return { prompt: complete(start, name, fields), responses: joined(responses, names) };
}

/** Return two texts as turns if both are whole conversations, or without the prompt if both repeat it. */
function takeApart(texts, names, prompt) {
  if (texts.every((text) => TEMPLATE.test(text))) {
    throw new Unreadable("the texts are in a chat template, which only `tinyrm score` reads");
  }
  const parsed = texts.map(transcriptOf);
  if (parsed.every((turns) => hasUser(turns) && turns[0].role !== "assistant" && turns.at(-1).role === "assistant")) {
    return parsed;
  }
  if (texts.every((text) => WRITTEN_MESSAGES.test(text))) return texts.map((text, at) => parseMessages(text, names[at]));
  return isText(prompt) ? withoutPrompt(prompt, texts) : texts;
}

/** Return the turns of a transcript with Human: and Assistant:, or none. */
function transcriptOf(text) {
  if (!/^\s*(Human|Assistant):/.test(text)) return [];
  const [, ...pieces] = text.trimStart().split(TRANSCRIPT);
  return pieces.flatMap((piece, at) => (at % 2 ? [] : [{ role: ROLES[piece.toLowerCase()], content: pieces[at + 1].trim() }]));
}

function withoutPrompt(prompt, texts) {
  const start = prompt.trim();
  const words = start.split(/\s+/).length + (/[.?!:]$/.test(start) ? 1 : 0);
  const rests = texts.map((text) => (text.trimStart().startsWith(start) ? text.trimStart().slice(start.length) : ""));
  const isRepeated = start && words >= MIN_REPEATED_WORDS && rests.every((rest) => /^\s/.test(rest) && rest.trim());
  return isRepeated ? rests.map((rest) => rest.trim()) : texts;
}

/** Return the messages that a text holds as JSON; any other value unchanged. */
function parseMessages(value, name) {
  if (!isText(value) || !WRITTEN_MESSAGES.test(value)) return value;
  try {
    return JSON.parse(value);
  } catch {
    throw new Unreadable(`${name} is a text that holds messages, but not as JSON; make a list of it first`);
  }
}

function findHistory(fields, names, values) {
  const column = HISTORIES.find((name) => has(fields, name));
  if (!column) throw new Unreadable(`no prompt: there is none of the columns ${PROMPTS.join(", ")}`);
  const history = present(fields, column);
  if (!isText(history) && turnsOf(history, column).at(-1).role === "assistant") {
    throw new Unreadable(`${column} ends in a turn of the assistant, so ${names[0]} is no response to it`);
  }
  return [history, column];
}

/** Return the prompt with what belongs to it in other columns. */
function complete(prompt, column, fields) {
  let turns = promptTurns(prompt, column);
  const rest = column === "instruction" ? fields.input : null;
  if (isText(prompt) && isText(rest) && rest.trim()) turns = [{ role: "user", content: `${prompt}\n\n${rest}` }];
  const system = SYSTEMS.map((name) => fields[name]).find((text) => isText(text) && text.trim());
  if (system && turns[0].role !== "system") turns = [{ role: "system", content: system }, ...turns];
  if (isText(prompt) && turns.length === 1 && turns[0].content === prompt) return prompt;
  const messages = withText(turns);
  if (!messages.length) throw new Unreadable(`${column} has no text`);
  return messages;
}

/** Return the turns of a prompt: one for a text, unless it is a transcript that the assistant must continue. */
function promptTurns(prompt, column) {
  if (!isText(prompt)) return turnsOf(prompt, column);
  if (TEMPLATE.test(prompt)) throw new Unreadable(`${column} is in a chat template, which only \`tinyrm score\` reads`);
  const turns = transcriptOf(prompt);
  const isOpen = turns.length && turns.at(-1).role === "assistant" && !turns.at(-1).content;
  return isOpen && hasUser(turns) ? turns.slice(0, -1) : [{ role: "user", content: prompt }];
}

/** Return what two whole conversations begin with as the prompt, and the rest of each as the responses. */
function split([a, b], names, prompt, column) {
  const isSame = (at) => JSON.stringify(a[at]) === JSON.stringify(b[at]);
  let end = 0;
  while (end < Math.min(a.length, b.length) - 1 && isSame(end)) end += 1;
  while (end && (a[end].role !== "assistant" || b[end].role !== "assistant")) end -= 1;
  const before = withText(a.slice(0, end));
  if (!hasUser(before)) {
    throw new Unreadable(`the conversations in ${names[0]} and ${names[1]} do not begin with the same prompt`);
  }
  if (prompt !== undefined && !isPartOf(withText(promptTurns(prompt, column)), before)) {
    throw new Unreadable(`the conversations in ${names[0]} and ${names[1]} do not begin with ${column}`);
  }
  return { prompt: before, responses: joined([a.slice(end), b.slice(end)], names) };
}

function isPartOf(given, before) {
  const [texts, own] = [given, before].map((turns) => turns.map((turn) => plainText(turn).trim()));
  const isAt = (start) => start >= 0 && texts.every((text, at) => own[start + at] === text);
  return [0, 1, own.length - texts.length].some(isAt) || (texts.length === 1 && own.includes(texts[0]));
}

// Turns

/** Return turns in the form of the API: a role and a content, and calls of tools as they are. */
function turnsOf(value, name) {
  if (isText(value)) return [{ role: "assistant", content: value }];
  return value.map((turn, at) => readTurn(turn, `${name}.${at}`));
}

function readTurn(turn, name) {
  const role = turn?.role ?? turn?.from;
  const keys = isObject(turn) ? ["content", "value", "text"].filter((key) => has(turn, key)) : [];
  const calls = ["tool_calls", "function_call", "refusal"].filter((key) => turn?.[key]);
  if (!isText(role) || !(keys.length || calls.length)) throw new Unreadable(`${name}: a message must have a role and a content`);
  const speaker = Object.hasOwn(ROLES, role.toLowerCase()) ? ROLES[role.toLowerCase()] : null;
  if (!speaker) throw new Unreadable(`${name}: a message has the unknown role '${role.slice(0, 40)}'`);
  const content = keys.map((key) => turn[key]).find((one) => one !== null) ?? "";
  if (!isText(content) && !Array.isArray(content)) {
    throw new Unreadable(`${name}: the content of a message must be a text or a list of parts`);
  }
  return { role: speaker, content, ...Object.fromEntries(calls.map((key) => [key, turn[key]])) };
}

const hasUser = (turns) => turns.some((turn) => turn.role === "user");
const isPlain = (turn) => isText(turn.content) && Object.keys(turn).length === 2;
const withText = (turns) => turns.filter((turn) => turn.content.length || Object.keys(turn).length > 2);

/** Return responses as texts, or as messages where only the service can make a text of them. */
function joined(responses, names) {
  return responses.map((turns, at) => {
    if (turns.some(({ role }) => role === "user" || role === "system")) {
      throw new Unreadable(`${names[at]} has turns of the user after those that both conversations begin with`);
    }
    if (turns.at(-1).role !== "assistant") throw new Unreadable(`${names[at]} does not end in a turn of the assistant`);
    const texts = turns.map((turn) => turn.content).filter((text) => text.length);
    return turns.every(isPlain) ? texts.join("\n\n") : turns;
  });
}

/** Return a turn as a text to be read by a person. */
export function plainText({ content, tool_calls: calls, function_call: call, refusal }) {
  const text = isText(content) ? content : content.map((part) => (isText(part) ? part : part?.text ?? "")).join("");
  const more = [...(Array.isArray(calls) ? calls : []), ...(call ? [call] : [])].map((one) => JSON.stringify(one));
  return [text || (isText(refusal) ? refusal : ""), ...more].filter(Boolean).join("\n");
}

// Labels

/** Return which response a person prefers: a, b, tie, or null if the line does not say so. */
function labelOf(fields) {
  const isPreference = !OWN.every((name) => has(fields, name)); // the chosen response is A
  if (["true", "yes", "1"].includes(String(fields.tie).toLowerCase())) return "tie";
  const word = String(fields.winner ?? fields.preferred ?? "").trim().toLowerCase().replace(/^(model|response)_/, "");
  const winner = WINNERS[word.startsWith("tie") ? "tie" : word];
  if (winner && !isPreference) return winner;
  const lean = typeof fields.margin === "number" ? fields.margin : fields.probability - 0.5;
  if (Number.isFinite(lean) && fields.probability !== null) return lean === 0 ? "tie" : lean > 0 ? "a" : "b";
  return isPreference ? "a" : null;
}
