// The API reference: the service's own OpenAPI document, as a page with a form for each operation.

import { renderMarkdown } from "./markdown.js";
import { fieldsOf, follow, inline, make } from "./reference-fields.js";
import { block, tryForm } from "./reference-try.js";

const $ = (id) => document.getElementById(id);

async function start() {
  let api;
  try {
    const reply = await fetch("openapi.json");
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    api = await reply.json();
  } catch (error) {
    $("status").textContent = `The API could not be loaded (${error.message}). Is the service running? Reload the page to try again.`;
    return;
  }
  $("status").remove();
  $("version").textContent = api.info.version;
  $("introduction").append(renderMarkdown(api.info.description));
  $("introduction").hidden = false;
  const operations = listOperations(api);
  $("authorization").hidden = !operations.some((one) => one.needsKey);
  for (const tag of api.tags) {
    const own = operations.filter((one) => one.operation.tags[0] === tag.name);
    if (own.length) addGroup(api, tag, own);
  }
  // The browser has looked for the place before there was any.
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function listOperations(api) {
  return Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => {
      const security = operation.security ?? [];
      const scopes = security.flatMap((one) => Object.values(one).flat());
      const needsKey = security.length > 0 && !security.some((one) => !Object.keys(one).length);
      return { path, method: method.toUpperCase(), operation, id: operation.operationId, scope: scopes[0], needsKey, isOpen: !scopes.length };
    }),
  );
}

function addGroup(api, tag, operations) {
  const links = operations.map(({ id, method, path }) =>
    make("li", {}, make("a", { href: `#${id}` }, make("span", { class: `method ${method}` }, method), make("span", {}, path))),
  );
  $("contents").append(make("h2", {}, tag["x-displayName"]), make("ul", { class: "plain" }, ...links));
  const group = make("section", { class: "group", "aria-labelledby": `tag-${tag.name}` });
  group.append(make("h2", { id: `tag-${tag.name}` }, tag["x-displayName"]), make("p", { class: "muted" }, ...inline(tag.description)));
  group.append(...operations.map((one) => operationOf(api, one)));
  $("operations").append(group);
}

function operationOf(api, one) {
  const { operation, id, path, method, scope, needsKey } = one;
  const title = make("h3", { id: `${id}-title` }, make("span", { class: `method ${method}` }, method), make("span", { class: "path" }, path));
  const article = make("article", { id, class: "card", "aria-labelledby": `${id}-title` }, title);
  const about = make("p", { class: "muted" }, "Operation ", make("code", {}, id));
  if (scope) about.append(needsKey ? ", needs a key with the scope " : ", with a key that has the scope ", make("code", {}, scope));
  if (scope && !needsKey) about.append(" where the service requires keys");
  article.append(make("p", {}, ...inline(operation.description ?? "")), about);
  const parameters = operation.parameters ?? [];
  if (parameters.length) article.append(make("h4", {}, "Parameters"), ...parameters.map(parameterOf));
  const content = operation.requestBody?.content["application/json"];
  if (content) article.append(make("h4", {}, "Request"), ...bodyOf(api, content.schema, `Fields of the request ${id}`, true));
  article.append(make("h4", {}, "Try it"), tryForm(operation, one, () => $("key").value.trim()));
  article.append(...repliesOf(api, one));
  return article;
}

function parameterOf({ name, in: place, description }) {
  return make("p", {}, make("code", {}, name), make("span", { class: "muted" }, ` (${place}) `), ...inline(description ?? ""));
}

/** Return the fields of a body, or of each of the bodies that it may be. */
function bodyOf(api, schema, caption, ofRequest = false) {
  const found = follow(api, schema);
  if (found.properties) return [fieldsOf(api, found, caption, { ofRequest })];
  const branches = found.anyOf ?? found.oneOf ?? [found.items].filter(Boolean);
  return branches.flatMap((one) => {
    const of = one.$ref?.split("/").pop() ?? caption;
    return follow(api, one).properties ? [make("p", { class: "muted" }, of), ...bodyOf(api, one, of, ofRequest)] : [];
  });
}

function repliesOf(api, { operation, id }) {
  const parts = [make("h4", {}, "Reply")];
  const errors = make("tbody");
  for (const [status, reply] of Object.entries(operation.responses)) {
    const content = reply.content?.["application/json"];
    if (status.startsWith("2")) {
      const schema = follow(api, content?.schema ?? {});
      if (schema.description) parts.push(make("p", {}, ...inline(schema.description)));
      parts.push(...bodyOf(api, content?.schema ?? {}, `Fields of the reply of ${id}`), headersOf(api, reply));
      const [example] = Object.values(content?.examples ?? {});
      if (example) {
        const fold = make("details", {}, make("summary", {}, "Example of a reply"));
        fold.append(block(JSON.stringify(example.value, null, 2), `Example of a reply of ${id}`));
        parts.push(fold);
      }
      continue;
    }
    const types = Object.values(content?.examples ?? {}).map((one) => follow(api, one).value.error);
    const cell = make("td", {}, ...types.flatMap(({ type, message }) => [make("p", {}, make("code", {}, type)), make("p", { class: "muted" }, message)]));
    errors.append(make("tr", {}, make("th", { scope: "row" }, status), make("td", {}, reply.description), cell));
  }
  if (errors.children.length) {
    const heads = ["Status", "When", "Types, each with a message"].map((text) => make("th", { scope: "col" }, text));
    const table = make("table", { class: "fields" }, make("caption", { class: "spoken" }, `Errors of ${id}`), make("thead", {}, make("tr", {}, ...heads)), errors);
    parts.push(make("details", {}, make("summary", {}, "Errors"), table));
  }
  return parts;
}

function headersOf(api, reply) {
  const lines = Object.entries(reply.headers ?? {}).map(([name, header]) =>
    make("li", {}, make("code", {}, name), ": ", ...inline(follow(api, header).description)),
  );
  return make("details", {}, make("summary", {}, "Headers of the reply"), make("ul", {}, ...lines));
}

$("authorization").addEventListener("submit", (event) => event.preventDefault());
start();
