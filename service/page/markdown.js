/**
 * Render Markdown as DOM nodes. Texts are untrusted: they become text nodes only, never markup, and a link must be
 * http, https or mailto. There are no images, and HTML stays visible as text.
 *
 * The work is linear in the length of a text: it is read line by line, nested blocks are limited in depth, and every
 * pattern is bounded. The container has the class `markdown` (markdown.css).
 */

const MAX_CHARACTERS = 200_000; // what follows is shown as plain text
const MAX_ROWS = 500; // of a table
const MAX_DEPTH = 8; // of quotes and lists
const MAX_EMPHASIS = 8; // of emphasis in emphasis
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)|$)/;
// Another number may be the end of a sentence, such as a year.
const FIRST_ITEM = /^ {0,3}(?:[-*+]|1[.)])[ \t]/;
const INDENTED = /^(?: {4}|\t)/;

/** Return a text as a DocumentFragment. */
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.slice(0, MAX_CHARACTERS).split(/\r\n|\r|\n/);
  renderBlocks(lines, fragment, 0);
  if (text.length > MAX_CHARACTERS) fragment.append(element("p", "plain", text.slice(MAX_CHARACTERS)));
  return fragment;
}

function element(tag, className, ...children) {
  const one = document.createElement(tag);
  if (className) one.className = className;
  one.append(...children);
  return one;
}

/** Append any number of children; so many arguments of one call would not fit on the stack. */
function fill(parent, children) {
  for (const child of children) parent.append(child);
  return parent;
}

// Blocks

function renderBlocks(lines, parent, depth) {
  const place = { parent, depth, heading: 3 };
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) at += 1;
    else at = renderBlock(lines, at, place);
  }
  return parent;
}

const isBlank = (line) => line.trim() === "";

/** Render the block that begins at a line, and return the line after it. */
function renderBlock(lines, at, place) {
  const line = lines[at];
  if (FENCE.test(line)) return renderFence(lines, at, place);
  if (INDENTED.test(line)) return renderIndented(lines, at, place);
  if (HEADING.test(line)) return renderHeading(lines, at, place);
  if (RULE.test(line)) return renderRule(lines, at, place);
  if (QUOTE.test(line) && place.depth < MAX_DEPTH) return renderQuote(lines, at, place);
  if (ITEM.test(line) && place.depth < MAX_DEPTH) return renderList(lines, at, place);
  if (isTable(lines, at)) return renderTable(lines, at, place);
  return renderParagraph(lines, at, place);
}

/** Whether a line ends the paragraph before it. */
const isBegin = (lines, at) =>
  [FENCE, HEADING, RULE, QUOTE, FIRST_ITEM].some((kind) => kind.test(lines[at])) || isTable(lines, at);

function renderFence(lines, at, place) {
  const [, fence, language] = FENCE.exec(lines[at]);
  const indent = lines[at].indexOf(fence);
  const code = [];
  for (at += 1; at < lines.length && !closes(lines[at], fence); at += 1) {
    code.push(lines[at].replace(/^ {0,3}/, (spaces) => spaces.slice(indent)));
  }
  place.parent.append(codeBlock(code.join("\n"), language.trim().split(/\s/)[0]));
  return at + 1;
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length) && !INDENTED.test(line);
}

function renderIndented(lines, at, place) {
  const code = [];
  for (; at < lines.length && (INDENTED.test(lines[at]) || isBlank(lines[at])); at += 1) {
    code.push(lines[at].replace(INDENTED, ""));
  }
  place.parent.append(codeBlock(code.join("\n").trimEnd(), ""));
  return at;
}

/** A block that may scroll sideways must be reachable by keyboard. */
function codeBlock(code, language) {
  const block = element("pre", "", element("code", "", code));
  block.tabIndex = 0;
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  if (language) block.dataset.language = language;
  return block;
}

/** Headings of a response are below those of the page, and none skips a level. */
function renderHeading(lines, at, place) {
  const marks = HEADING.exec(lines[at])[1].length;
  const text = lines[at].trim().slice(marks).trim().replace(/(^|\s)#+$/, "");
  if (!text) return at + 1;
  place.heading = Math.min(3 + marks, place.heading + 1, 6);
  place.parent.append(inline(element(`h${place.heading}`), text));
  return at + 1;
}

function renderRule(lines, at, place) {
  place.parent.append(element("hr"));
  return at + 1;
}

function renderQuote(lines, at, { parent, depth }) {
  const quoted = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at += 1) quoted.push(lines[at].replace(QUOTE, ""));
  parent.append(renderBlocks(quoted, element("blockquote"), depth + 1));
  return at;
}

function renderList(lines, at, { parent, depth }) {
  const kind = kindOf(lines[at]);
  const number = parseInt(ITEM.exec(lines[at])[2], 10);
  const list = element(Number.isNaN(number) ? "ul" : "ol");
  if (number !== 1 && list.tagName === "OL") list.start = number;
  while (at < lines.length && ITEM.test(lines[at]) && !RULE.test(lines[at]) && kindOf(lines[at]) === kind) {
    const [content, next] = takeItem(lines, at);
    list.append(unwrap(renderBlocks(content, element("li"), depth + 1)));
    at = next;
  }
  parent.append(list);
  return at;
}

/** Bullets of different kinds are different lists, as numbers and bullets are. */
const kindOf = (line) => ITEM.exec(line)[2].at(-1);

/** Return the lines of an item without their indentation, and the number of the line after it. */
function takeItem(lines, at) {
  const [whole, lead, , space] = ITEM.exec(lines[at]);
  const width = whole.length - (space?.length > 4 ? space.length - 1 : 0);
  const content = [lines[at].slice(width)];
  let [end, isAfterBlank] = [at + 1, false];
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    // Two columns are enough, though they do not reach the text after a number.
    if (!isBlank(line) && indentOf(line) < lead.length + 2) {
      if (isAfterBlank || ITEM.test(line) || isBegin(lines, end)) break;
    }
    isAfterBlank = isBlank(line);
    content.push(withoutIndent(line, width));
  }
  return [content, end];
}

const columnsOf = (space) => space.replaceAll("\t", "    ").length;
const indentOf = (line) => columnsOf(/^[ \t]*/.exec(line)[0]);

function withoutIndent(line, columns) {
  const space = /^[ \t]*/.exec(line)[0];
  return " ".repeat(Math.max(0, columnsOf(space) - columns)) + line.slice(space.length);
}

/** An item of one paragraph, with or without a list below it, is set without the distance of paragraphs. */
function unwrap(item) {
  const paragraphs = [...item.children].filter((child) => child.tagName === "P");
  if (paragraphs.length !== 1 || item.firstChild !== paragraphs[0]) return item;
  const lines = document.createDocumentFragment();
  paragraphs[0].replaceWith(fill(lines, [...paragraphs[0].childNodes]));
  return item;
}

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-")) return false;
  const [names, marks] = [cellsOf(lines[at]), cellsOf(lines[at + 1])];
  return names.length === marks.length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

/** Return the cells of a row; a pipe after a backslash belongs to its cell. */
function cellsOf(line) {
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function renderTable(lines, at, place) {
  const sides = cellsOf(lines[at + 1]).map((mark) =>
    mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "left",
  );
  const row = (line, tag) =>
    element(
      "tr",
      "",
      ...cellsOf(line)
        .slice(0, sides.length)
        .map((cell, index) => inline(element(cell ? tag : "td", `to-${sides[index]}`), cell)),
    );
  const head = element("thead", "", row(lines[at], "th"));
  const body = element("tbody");
  for (at += 2; lines[at]?.includes("|") && body.children.length < MAX_ROWS; at += 1) body.append(row(lines[at], "td"));
  const frame = element("div", "table", element("table", "", head, body));
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", "Table");
  place.parent.append(frame);
  return at;
}

function renderParagraph(lines, at, place) {
  const text = [lines[at].trim()];
  for (at += 1; at < lines.length && !isBlank(lines[at]) && !isBegin(lines, at); at += 1) text.push(lines[at].trim());
  place.parent.append(inline(element("p"), text.join("\n")));
  return at;
}

// What is within a line

// In this order: an escape, code, emphasis, the beginning of a link, an address, the end of a line in two forms.
const TOKEN =
  /\\([!-/:-@[-`{-~])|(`+)|(\*+|_+|~~+)|!?\[|<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>|(?<![\p{L}\p{N}])https?:\/\/[^\s<>"`|\\]{1,2000}|\n|<br ?\/?>/giu;
const LINK =
  /!?\[((?:[^[\]\\]|\\.){0,500})\]\([ \t]{0,9}<?([^\s()<>]{0,1000}(?:\([^\s()<>]{0,1000}\)[^\s()<>]{0,1000}){0,9})>?(?:[ \t]{1,9}"[^"\n]{0,200}")?[ \t]{0,9}\)/y;

/** Append a text to a parent, which is returned. A line's end is kept, as in a chat. */
function inline(parent, text, canLink = true) {
  const codes = codeEnds(text);
  const line = new Line();
  let end = 0;
  TOKEN.lastIndex = 0;
  for (let found; (found = TOKEN.exec(text)); TOKEN.lastIndex = end) {
    line.text(text.slice(end, found.index));
    end = found.index + readToken(found, text, line, codes, canLink);
  }
  line.text(text.slice(end));
  return fill(parent, line.nodes());
}

/** Read a token, and return how many characters that were. */
function readToken(found, text, line, codes, canLink) {
  const [token, escaped, ticks, marks, address] = found;
  const at = found.index;
  if (ticks) return readCode(ticks, at, text, line, codes);
  if (token === "[" || token === "![") return readLink(token, at, text, line, canLink);
  if (marks) line.mark(marks, text[at - 1], text[at + marks.length]);
  else if (escaped) line.text(escaped);
  else if (address) line.link(address, [address]);
  else if (token === "\n" || token[0] === "<") line.node(element("br"));
  else return readAddress(token, line, canLink);
  return token.length;
}

/** The end of a sentence is not part of an address, nor is a bracket that the address does not open. */
function readAddress(token, line, canLink) {
  const end = /[.,;:!?'*_~\])]{1,20}$/.exec(token);
  const kept = end ? token.slice(0, end.index) : token;
  const address = end?.[0].startsWith(")") && kept.includes("(") ? `${kept})` : kept;
  if (canLink) line.link(address, [address]);
  else line.text(address);
  return address.length;
}

/** Return the places of runs of backticks by their length: each run is looked at once, however many have no end. */
function codeEnds(text) {
  const places = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!places.has(run.length)) places.set(run.length, { next: 0, all: [] });
    places.get(run.length).all.push(index);
  }
  return places;
}

function readCode(ticks, at, text, line, codes) {
  const places = codes.get(ticks.length);
  while (places && places.all[places.next] <= at) places.next += 1;
  const end = places?.all[places.next];
  if (end === undefined) {
    line.text(ticks);
    return ticks.length;
  }
  const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
  line.node(element("code", "", /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code));
  return end + ticks.length - at;
}

/** A link in a link would not be valid; an image becomes a link to it. */
function readLink(token, at, text, line, canLink) {
  LINK.lastIndex = at;
  const [whole, name, address] = (canLink && LINK.exec(text)) || [];
  if (!whole) {
    line.text(token);
    return token.length;
  }
  const label = inline(document.createDocumentFragment(), name || address, false);
  line.link(address, [label]);
  return whole.length;
}

const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
const isSpace = (character) => character === undefined || /\s/.test(character);

/** The nodes of a line, in which marks of emphasis find their partners as they come. */
class Line {
  #items = []; // {node, depth} or a mark: {character, count}
  #open = []; // places of marks that may begin an emphasis
  #openOf = { "*": 0, _: 0, "~": 0 };

  text(text) {
    if (text) this.node(document.createTextNode(text));
  }

  node(node, depth = 0) {
    this.#items.push({ node, depth });
  }

  /** A link to another kind of address stays a text. */
  link(address, children) {
    const target = URL.canParse(address) ? new URL(address) : null;
    const isAllowed = SCHEMES.has(target?.protocol);
    const link = fill(element(isAllowed ? "a" : "span"), children);
    if (isAllowed) Object.assign(link, { href: target.href, target: "_blank", rel: "noopener noreferrer nofollow" });
    this.node(link);
  }

  /** Close what a mark may close, and let the rest of it open: the rules of CommonMark, without its rule of three. */
  mark(marks, before, after) {
    const character = marks[0];
    const isLeft = !isSpace(after) && (isWord(after) || !isWord(before));
    const isRight = !isSpace(before) && (isWord(before) || !isWord(after));
    const isWithin = character === "_" && isWord(before) && isWord(after);
    let count = marks.length;
    if (isRight && !isWithin) while (count && this.#openOf[character]) count -= this.#close(character, count);
    if (!count) return;
    this.#items.push({ character, count });
    if (isLeft && !isWithin) this.#push(character, this.#items.length - 1);
  }

  #push(character, place) {
    this.#open.push(place);
    this.#openOf[character] += 1;
  }

  /** Wrap what follows the last open mark of this kind, and return how many characters of the closing one that took. */
  #close(character, count) {
    let mark, place;
    do {
      place = this.#open.pop();
      mark = this.#items[place];
      this.#openOf[mark.character] -= 1;
    } while (mark.character !== character);
    const taken = Math.min(mark.count, count, 2);
    const inner = this.#items.splice(place + 1);
    const depth = 1 + inner.reduce((deepest, item) => Math.max(deepest, item.depth ?? 0), 0);
    mark.count -= taken;
    if (mark.count) this.#push(character, place);
    else this.#items.pop();
    const tag = character === "~" ? "s" : taken === 2 ? "strong" : "em";
    this.node(fill(element(tag), inner.map(nodeOf)), depth);
    if (depth >= MAX_EMPHASIS) this.#forget();
    return taken;
  }

  /** Let no earlier mark be closed: emphasis is as deep as it may be. */
  #forget() {
    this.#open = [];
    this.#openOf = { "*": 0, _: 0, "~": 0 };
  }

  nodes() {
    return this.#items.map(nodeOf);
  }
}

const nodeOf = ({ node, character, count }) => node ?? document.createTextNode(character.repeat(count));
