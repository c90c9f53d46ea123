// A form that sends an operation's example, which can be edited, and shows what the service replies.

import { addressOf } from "./api.js";
import { make } from "./reference-fields.js";

const SHOWN_HEADERS = ["X-Request-Id", "Server-Timing", "Retry-After"];

const json = (value) => JSON.stringify(value, null, 2);

/** Return the form. keyOf: returns the API key, or "". */
export function tryForm(operation, { method, path, id, isOpen }, keyOf) {
  const content = operation.requestBody?.content["application/json"];
  const examples = Object.entries(content?.examples ?? {});
  const form = make("form", { class: "try", autocomplete: "off" });
  const body = content && make("textarea", { id: `${id}-body`, spellcheck: "false", rows: "8" });

  if (examples.length > 1) {
    const select = make("select", { id: `${id}-example` });
    for (const [name, example] of examples) select.append(make("option", { value: name }, example.summary));
    select.addEventListener("change", () => (body.value = json(content.examples[select.value].value)));
    form.append(labelled("Example", select));
  }
  if (body) {
    body.value = json(examples[0]?.[1].value ?? {});
    form.append(labelled("Body", body));
  }
  const inputs = (operation.parameters ?? [])
    .filter((one) => one.in === "path")
    .map((one) => [one.name, make("input", { id: `${id}-${one.name}`, value: "starter", required: "" })]);
  for (const [name, input] of inputs) form.append(labelled(name, input));

  const send = make("button", { class: "main" }, "Send the request");
  const status = make("p", { role: "status", class: "muted" });
  const output = make("div");
  form.append(make("div", { class: "send" }, send, status), output);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    status.textContent = "Waiting for the reply…";
    output.replaceChildren();
    const where = inputs.reduce((at, [name, input]) => at.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    const headers = keyOf() && !isOpen ? { Authorization: `Bearer ${keyOf()}` } : {};
    const options = body ? { method, body: body.value, headers: { ...headers, "Content-Type": "application/json" } } : { method, headers };
    const begun = performance.now();
    try {
      const reply = await fetch(addressOf(where.slice(1)), options);
      const text = await reply.text();
      status.textContent = `${reply.status} ${reply.statusText}, ${(performance.now() - begun).toFixed(0)} ms`;
      output.append(...shown(reply, text, id));
    } catch (error) {
      status.textContent = `No reply (${error.message}). Is the service running?`;
    }
    send.disabled = false;
  });
  return form;
}

/** Return the headers and the body of a reply. */
function shown(reply, text, id) {
  const facts = SHOWN_HEADERS.filter((name) => reply.headers.has(name)).map((name) => `${name}: ${reply.headers.get(name)}`);
  let body = text;
  if (reply.headers.get("Content-Type")?.startsWith("application/json")) body = json(JSON.parse(text));
  return [make("pre", { class: "muted" }, facts.join("\n")), block(body, `Reply to ${id}`, reply.ok ? "" : "failed")];
}

/** Return a text that scrolls, which the keyboard reaches, too. */
export function block(text, name, className = "") {
  return make("pre", { class: className, tabindex: "0", role: "region", "aria-label": name }, text);
}

function labelled(name, control) {
  return make("div", { class: "field" }, make("label", { for: control.id }, name), control);
}
