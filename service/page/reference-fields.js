// Fields of a JSON schema as tables. All texts become text nodes: nothing of the document is read as markup.

/** Return an element with attributes; a child that is a text stays one. */
export function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

/** Split a text at `code` into text nodes and elements. */
export function inline(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

/** Return what a reference leads to, or the value itself. */
export function follow(api, value) {
  if (!value?.$ref) return value;
  return value.$ref.slice(2).split("/").reduce((found, part) => found[part], api);
}

const nameOf = (schema) => schema.$ref?.split("/").pop();
const branchesOf = (schema) => schema.anyOf ?? schema.oneOf ?? [];

/** Return the type of a field in words. */
export function kindOf(api, schema) {
  const branches = branchesOf(schema);
  if (branches.length) return branches.map((one) => kindOf(api, one)).join(" or ");
  if (schema.$ref) {
    const found = follow(api, schema);
    return found.properties ? nameOf(schema) : kindOf(api, found);
  }
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kindOf(api, schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `map to ${schema.additionalProperties.type}`;
  return schema.type ?? "any value";
}

/** Return limits and default of a field in words. */
function limitsOf(schema) {
  const parts = [schema, ...branchesOf(schema)];
  const said = [];
  const say = (name, words) => {
    const found = parts.find((one) => one[name] !== undefined);
    if (found) said.push(`${words} ${found[name].toLocaleString("en")}`);
  };
  say("minLength", "characters: at least");
  say("maxLength", "characters: at most");
  say("minItems", "entries: at least");
  say("maxItems", "entries: at most");
  say("minimum", "at least");
  say("maximum", "at most");
  if (schema.default !== undefined && schema.default !== null) said.push(`default ${JSON.stringify(schema.default)}`);
  if (schema.examples?.length) said.push(`here: ${schema.examples.join(", ")}`);
  return said.join("; ");
}

/** Return the schemas of objects that a field may hold, by name. */
function objectsIn(api, schema) {
  const found = follow(api, schema);
  if (found.properties) return [[nameOf(schema), found]];
  return [...branchesOf(found), ...(found.items ? [found.items] : [])].flatMap((one) => objectsIn(api, one));
}

/**
 * Return a table of the fields of a schema, in which the objects of a field can be unfolded.
 * ofRequest: whether to mark the fields that must be there; a reply has all of them.
 * seen: the names of the objects around this one, which are not repeated.
 */
export function fieldsOf(api, schema, caption, { ofRequest = false, seen = [] } = {}) {
  const table = make("table", { class: "fields" }, make("caption", { class: "spoken" }, caption));
  const heads = ["Field", "Type", "Meaning"].map((text) => make("th", { scope: "col" }, text));
  const body = make("tbody");
  table.append(make("thead", {}, make("tr", {}, ...heads)), body);
  for (const [name, field] of Object.entries(schema.properties)) {
    const isRequired = ofRequest && schema.required?.includes(name);
    const meaning = make("td", {}, ...inline(field.description ?? follow(api, field).description ?? ""));
    const limits = limitsOf(field);
    if (limits) meaning.append(make("p", { class: "muted" }, limits));
    for (const [inner, object] of objectsIn(api, field)) {
      if (seen.includes(inner)) continue;
      const fold = make("details", {}, make("summary", {}, `Fields of ${inner}`));
      // Made when it is opened: some objects are in many fields.
      const open = () => fold.append(fieldsOf(api, object, `Fields of ${inner}`, { ofRequest, seen: [...seen, inner] }));
      fold.addEventListener("toggle", open, { once: true });
      meaning.append(fold);
    }
    const title = make("th", { scope: "row" }, make("code", {}, name));
    if (isRequired) title.append(make("span", { class: "required" }, " required"));
    body.append(make("tr", {}, title, make("td", { class: "kind" }, kindOf(api, field)), meaning));
  }
  return table;
}
