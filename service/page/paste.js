// Pasted JSON: a request of this API, a list of messages, or a line of a preference set becomes a state of the form.

/** Return {state, kind}, or null for any other text. */
export function readPasted(text) {
  const start = text.trimStart()[0];
  if (start !== "{" && start !== "[") return null;
  const value = parse(text) ?? parse(text.trim().split("\n")[0]);
  if (value === undefined || value === null) return null;
  if (Array.isArray(value)) return isMessages(value) ? ofMessages(value) : null;
  return ofRequest(value) ?? ofPreference(value) ?? (isMessages(value.messages) ? ofMessages(value.messages) : null);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isMessages = (value) =>
  Array.isArray(value) && value.length > 0 && value.every((one) => typeof one?.role === "string");
const isText = (value) => typeof value === "string" || isMessages(value);

const stateOf = (prompt, responses, { domain = "", model } = {}) => ({
  prompt: typeof prompt === "string" ? prompt : turnsOf(prompt),
  responses: responses.map(textOf),
  domain: typeof domain === "string" ? domain : "",
  models: typeof model === "string" ? [model] : [],
});

/** Of /v1/compare, /v1/rank or /v1/rewards. */
function ofRequest(value) {
  const { prompt, response_a, response_b, responses = [response_a, response_b] } = value;
  if (!isText(prompt) || !Array.isArray(responses) || responses.length < 2 || !responses.every(isText)) return null;
  return { state: stateOf(prompt, responses.slice(0, 26), value), kind: "a request" };
}

/** Of a preference set: the chosen response is A. Both may hold the prompt, as messages before the last reply. */
function ofPreference(value) {
  const { chosen, rejected } = value;
  if (!isText(chosen) || !isText(rejected)) return null;
  const kind = "a preference pair; A is the chosen response";
  if (isText(value.prompt)) {
    const own = (messages) => (isMessages(messages) ? messages.slice(sharedLength(messages, value.prompt)) : messages);
    return { state: stateOf(value.prompt, [own(chosen), own(rejected)], value), kind };
  }
  if (!isMessages(chosen) || !isMessages(rejected)) return null;
  const shared = sharedLength(chosen, rejected);
  if (shared === 0) return null;
  return { state: stateOf(chosen.slice(0, shared), [chosen.slice(shared), rejected.slice(shared)], value), kind };
}

/** Return how many messages are the same at the beginning. */
function sharedLength(messages, others) {
  if (!isMessages(others)) return 0;
  let at = 0;
  while (at < messages.length - 1 && JSON.stringify(messages[at]) === JSON.stringify(others[at])) at += 1;
  return at;
}

/** A dialogue: what the assistant says last is response A. */
function ofMessages(messages) {
  const isAnswered = messages.length > 1 && messages.at(-1).role === "assistant";
  const prompt = isAnswered ? messages.slice(0, -1) : messages;
  const responses = isAnswered ? [messages.slice(-1), ""] : ["", ""];
  return { state: stateOf(prompt, responses), kind: "a list of messages" };
}

function turnsOf(messages) {
  const roles = { developer: "system", function: "tool" };
  return messages.map((one) => ({ role: roles[one.role] ?? one.role, content: contentOf(one) }));
}

const textOf = (value) => (typeof value === "string" ? value : value.map(contentOf).filter(Boolean).join("\n\n"));

/** Return the text of a message: its content, or its parts, and the calls of tools as JSON. */
function contentOf({ content, tool_calls }) {
  const parts = Array.isArray(content) ? content.map((part) => part?.text ?? "") : [content ?? ""];
  const calls = tool_calls?.length ? [JSON.stringify(tool_calls.map((one) => one.function ?? one), null, 2)] : [];
  return [...parts.map(String), ...calls].filter(Boolean).join("\n\n");
}
