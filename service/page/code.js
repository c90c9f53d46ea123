/**
 * Write a call as code that can be pasted: for a shell, Python, JavaScript, and as a reward function of TRL. Texts may
 * hold anything, and each language gets them as its own literals. A variable of the environment stands for the key:
 * people paste code where others read it.
 */

// Path -> a method of tinyrm.Client, its arguments without names, and what of the reply is printed.
const METHODS = {
  "v1/compare": { method: "compare", places: ["prompt", "response_a", "response_b"], shown: ["preferred", "probability_a"] },
  "v1/rank": { method: "rank", places: ["prompt", "responses"], shown: ["order", "strengths"] },
  "v1/rewards": { method: "rewards", places: ["prompt", "responses"], shown: ["rewards"] },
  "v1/score": { method: "score", places: ["prompt", "responses"], shown: ["results"] },
};
// Options that a reward function takes, too.
const REWARD_OPTIONS = ["domain", "instruction", "model", "swap", "reasoning"];
const KEY = "TINYRM_API_KEY";
const MAX_ARGUMENT_BYTES = 100_000; // Linux allows 131,072 in one argument of a command

/**
 * Return [{label, language, text}] for a call.
 *
 * path: such as v1/compare. body: of the request. origin: address of the service, as the page has it.
 * needsKey: whether the call needs a key.
 */
export function snippets(path, body, { origin, needsKey = false }) {
  const call = { path: path.replace(/^\/+/, ""), body, origin: origin.replace(/\/+$/, ""), needsKey };
  const ofMethods = METHODS[call.path]
    ? [
        { label: "Python", language: "python", text: pythonOf(call) },
        { label: "Python, async", language: "python", text: asyncPythonOf(call) },
      ]
    : [];
  const ofTexts = textsOf(body) ? [{ label: "TRL", language: "python", text: trlOf(call) }] : [];
  return [
    { label: "curl", language: "shell", text: curlOf(call) },
    ...ofMethods,
    { label: "JavaScript", language: "javascript", text: javascriptOf(call) },
    ...ofTexts,
  ];
}

// curl

function curlOf({ path, body, origin, needsKey }) {
  const json = JSON.stringify(body, null, 2);
  const lines = [`curl -s ${quoted(`${origin}/${path}`)}`, `-H ${quoted("Content-Type: application/json")}`];
  if (needsKey) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  const isLong = new TextEncoder().encode(json).length > MAX_ARGUMENT_BYTES;
  // No line of JSON is JSON alone, so the text ends where it must.
  const data = isLong ? `-d @- <<'JSON'\n${json}\nJSON` : `-d ${quoted(json.replaceAll("\n", "\n  "))}`;
  return [...lines, data].join(" \\\n  ");
}

/** Return a text for a POSIX shell, in which only the quote itself ends a quoted text. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// Python

function pythonOf(call) {
  const { method, shown } = METHODS[call.path];
  return `${imports(needed(call), "from tinyrm import Client")}
with Client(${clientArguments(call)}) as client:
    reply = client.${method}(${pythonArguments(call, 1)})
print(${shown.map((field) => `reply.${field}`).join(", ")})
`;
}

function asyncPythonOf(call) {
  const { method, shown } = METHODS[call.path];
  return `${imports(["asyncio", ...needed(call)], "from tinyrm import AsyncClient")}

async def main() -> None:
    async with AsyncClient(${clientArguments(call)}) as client:
        reply = await client.${method}(${pythonArguments(call, 2)})
    print(${shown.map((field) => `reply.${field}`).join(", ")})


asyncio.run(main())
`;
}

const needed = ({ needsKey }) => (needsKey ? ["os"] : []);
const imports = (modules, own) => `${modules.map((name) => `import ${name}\n`).join("")}${modules.length ? "\n" : ""}${own}\n`;

const clientArguments = ({ origin, needsKey }) =>
  [python(origin), ...(needsKey ? [`os.environ["${KEY}"]`] : [])].join(", ");

function pythonArguments({ path, body }, depth) {
  const { places } = METHODS[path];
  const options = Object.entries(body).filter(([name]) => !places.includes(name));
  const given = [
    ...places.map((name) => python(body[name], depth + 1)),
    ...options.map(([name, value]) => `${name}=${python(value, depth + 1)}`),
  ];
  return enclosed(given, "(", ")", depth).slice(1, -1);
}

/** Return a value of JSON as a literal of Python. */
function python(value, depth = 0) {
  if (typeof value === "string") return pythonText(value);
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return enclosed(value.map((one) => python(one, depth + 1)), "[", "]", depth);
  if (typeof value !== "object") return String(value);
  const items = Object.entries(value).map(([name, one]) => `${pythonText(name)}: ${python(one, depth + 1)}`);
  return enclosed(items, "{", "}", depth);
}

/**
 * Python reads the escapes of JSON in the same way, except those of characters beyond 16 bits, which JSON.stringify does
 * not escape. Half of such a character alone is an escape, and stays one.
 */
const pythonText = (text) => JSON.stringify(text).replaceAll("\x7f", "\\x7f");

/** Return items in brackets, on one line if it is short. */
function enclosed(items, open, close, depth) {
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length + 4 * depth <= 80 && !line.includes("\n")) return line;
  const space = "    ".repeat(depth);
  return `${open}\n${items.map((item) => `${space}    ${item},\n`).join("")}${space}${close}`;
}

// JavaScript

function javascriptOf({ path, body, origin, needsKey }) {
  const headers = ['"Content-Type": "application/json"'];
  if (needsKey) headers.push(`Authorization: \`Bearer \${process.env.${KEY}}\``);
  return `const response = await fetch(${javascript(`${origin}/${path}`)}, {
  method: "POST",
  headers: { ${headers.join(", ")} },
  body: JSON.stringify(${javascript(body).replaceAll("\n", "\n  ")}),
});
const reply = await response.json();
if (!response.ok) throw new Error(\`\${reply.error.type}: \${reply.error.message}\`);
console.log(${(METHODS[path]?.shown ?? ["results"]).map((field) => `reply.${field}`).join(", ")});
`;
}

/** Return a value as a literal that is the same in a file and inside of a page, where it must not end a script. */
const javascript = (value) => JSON.stringify(value, null, 2).replaceAll("</", "<\\/").replaceAll("<!--", "<\\!--");

// TRL

/** Return the responses of a body; null if it has none, as a list of comparisons. */
function textsOf({ prompt, responses, response_a, response_b }) {
  if (prompt === undefined) return null;
  return responses ?? (response_a === undefined ? null : [response_a, response_b]);
}

function trlOf(call) {
  const { body, origin, needsKey } = call;
  const options = Object.entries(body).filter(([name]) => REWARD_OPTIONS.includes(name));
  const given = [
    python(origin),
    ...(needsKey ? [`api_key=os.environ["${KEY}"]`] : []),
    ...options.map(([name, value]) => `${name}=${python(value, 1)}`),
  ];
  return `${imports(needed(call), "from tinyrm.integrations.trl import reward_func")}
reward = reward_func${enclosed(given, "(", ")", 0)}
# trainer = GRPOTrainer(model=..., reward_funcs=reward, train_dataset=...)

# What the trainer does with the completions to one prompt:
completions = ${python(textsOf(body), 0)}
prompt = ${python(body.prompt, 0)}
print(reward([prompt] * len(completions), completions))
`;
}
