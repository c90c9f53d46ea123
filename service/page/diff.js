/**
 * Show two texts with the words that differ marked: `<del>` for what only the first has, `<ins>` for what only the
 * second has. The containers have the class `diff` (diff.css), which keeps line ends and makes the marks visible
 * without colour.
 *
 * The work is bounded. Myers' algorithm finds the fewest changes while there are up to MAX_CHANGES. Two texts that
 * differ more are split at words that each of them has once, in the same sequence, and the parts are compared alone. In
 * a part without such a word, each MAX_CHANGES changes are the best ones by themselves.
 */

const MAX_CHANGES = 300;
const MAX_SPLITS = 3; // parts in parts

// In this order: the end of a line with the indentation of the next one; a character of a script without spaces
// between words; a word, or a sign, each with the spaces after it.
const WORDS =
  /\r?\n[^\S\r\n]*|[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Thai}]|[\p{L}\p{M}\p{N}_]+[^\S\r\n]*|[^\s][^\S\r\n]*|\s/gu;

/** Return both texts as DocumentFragments. */
export function renderDiff(a, b) {
  const words = [a, b].map((text) => text.match(WORDS) ?? []);
  const [marksA, marksB] = compareWords(...words);
  return [render(words[0], marksA, "del"), render(words[1], marksB, "ins")];
}

/** Return for each word of both texts whether it differs. Spaces within a line do not count. */
export function compareWords(a, b) {
  const numbers = new Map();
  const [idsA, idsB] = [a, b].map((words) => Int32Array.from(words, (word) => numberOf(numbers, word)));
  const marks = [new Uint8Array(a.length).fill(1), new Uint8Array(b.length).fill(1)];
  const text = { a: idsA, b: idsB, marks };
  markPart(text, { fromA: 0, toA: a.length, fromB: 0, toB: b.length }, 0);
  dropIslands(text);
  return marks;
}

function numberOf(numbers, word) {
  const key = word.trimEnd() || word;
  if (!numbers.has(key)) numbers.set(key, numbers.size);
  return numbers.get(key);
}

/** Unmark what is equal in a part of both texts. */
function markPart(text, { fromA, toA, fromB, toB }, splits) {
  const { a, b } = text;
  while (fromA < toA && fromB < toB && a[fromA] === b[fromB]) keep(text, fromA++, fromB++);
  while (fromA < toA && fromB < toB && a[toA - 1] === b[toB - 1]) keep(text, --toA, --toB);
  const part = { fromA, toA, fromB, toB };
  if (fromA === toA || fromB === toB || markFewest(text, part)) return;
  const anchors = splits < MAX_SPLITS ? findAnchors(text, part) : [];
  if (!anchors.length) return markGreedily(text, part);
  for (const [atA, atB] of [...anchors, [toA, toB]]) {
    markPart(text, { fromA, toA: atA, fromB, toB: atB }, splits + 1);
    if (atA < toA) keep(text, atA, atB);
    [fromA, fromB] = [atA + 1, atB + 1];
  }
}

/** Unmark what MAX_CHANGES changes leave equal, as often as the part is long. */
function markGreedily(text, part) {
  while (part.fromA < part.toA && part.fromB < part.toB) {
    const [x, y] = markFewest(text, part, true);
    part = { ...part, fromA: part.fromA + x, fromB: part.fromB + y };
  }
}

function keep({ marks }, atA, atB) {
  marks[0][atA] = 0;
  marks[1][atB] = 0;
}

/**
 * Unmark a longest common sequence of words, and return how many words of both texts that were. If there are more than
 * MAX_CHANGES, either return null, or go as far as they lead.
 */
function markFewest(text, { fromA, toA, fromB, toB }, isPartial = false) {
  const [a, b] = [text.a, text.b];
  const [lengthA, lengthB] = [toA - fromA, toB - fromB];
  if (!isPartial && Math.abs(lengthA - lengthB) > MAX_CHANGES) return null;
  const middle = MAX_CHANGES + 1;
  const reached = new Int32Array(2 * middle + 1); // how far in A, for each diagonal: place in A less place in B
  const history = [];
  let furthest = [0, 0];
  for (let changes = 0; changes <= MAX_CHANGES; changes += 1) {
    history.push(reached.slice(middle - changes - 1, middle + changes + 2));
    furthest = [0, 0];
    for (let diagonal = -changes; diagonal <= changes; diagonal += 2) {
      const isDown = diagonal === -changes || (diagonal !== changes && isBehind(reached, middle + diagonal));
      let x = isDown ? reached[middle + diagonal + 1] : reached[middle + diagonal - 1] + 1;
      while (x < lengthA && x - diagonal < lengthB && a[fromA + x] === b[fromB + x - diagonal]) x += 1;
      reached[middle + diagonal] = x;
      const y = x - diagonal;
      if (x > lengthA || y > lengthB) continue; // beyond an end, where nothing is
      if (x + y >= furthest[0] + furthest[1]) furthest = [x, y];
      if (x === lengthA && y === lengthB) return walkBack(text, fromA, fromB, furthest, history);
    }
  }
  return isPartial ? walkBack(text, fromA, fromB, furthest, history) : null;
}

const isBehind = (reached, at) => reached[at - 1] < reached[at + 1];

/** Unmark the equal words on the way that led to an end, which is returned. */
function walkBack(text, fromA, fromB, end, history) {
  let [x, y] = end;
  for (let changes = history.length - 1; changes >= 0; changes -= 1) {
    const middle = changes + 1; // of the diagonals that were kept at this number of changes
    const diagonal = x - y;
    const isDown =
      diagonal === -changes || (diagonal !== changes && isBehind(history[changes], middle + diagonal));
    const before = diagonal + (isDown ? 1 : -1);
    const startX = changes ? history[changes][middle + before] : 0;
    const endX = changes ? startX + (isDown ? 0 : 1) : 0;
    while (x > endX) keep(text, fromA + --x, fromB + --y);
    [x, y] = changes ? [startX, startX - before] : [0, 0];
  }
  return end;
}

/** Return places of words that are once in both parts: the longest list that is in sequence in both. */
function findAnchors({ a, b }, { fromA, toA, fromB, toB }) {
  const places = new Map(); // word -> [place in A, place in B]; null if it is there twice
  for (let at = fromA; at < toA; at += 1) places.set(a[at], places.has(a[at]) ? null : [at]);
  for (let at = fromB; at < toB; at += 1) {
    const place = places.get(b[at]);
    if (place) places.set(b[at], place.length === 1 ? [...place, at] : null);
  }
  const pairs = [...places.values()].filter((place) => place?.length === 2);
  return longestIncreasing(pairs.sort((one, other) => one[0] - other[0]));
}

/** Return the longest part of a list of pairs whose second places increase. */
function longestIncreasing(pairs) {
  const ends = []; // of the best list of each length, as numbers of pairs
  const before = new Int32Array(pairs.length).fill(-1);
  pairs.forEach(([, place], number) => {
    let [low, high] = [0, ends.length];
    while (low < high) {
      const half = (low + high) >> 1;
      if (pairs[ends[half]][1] < place) low = half + 1;
      else high = half;
    }
    if (low) before[number] = ends[low - 1];
    ends[low] = number;
  });
  const list = [];
  for (let at = ends.at(-1) ?? -1; at >= 0; at = before[at]) list.push(pairs[at]);
  return list.reverse();
}

/** Mark a word or two that are equal by accident between two long changes: alone they only disturb the reader. */
function dropIslands({ a, b, marks: [marksA, marksB] }) {
  let [atA, atB, changed] = [0, 0, 0];
  while (atA < a.length || atB < b.length) {
    const [startA, startB] = [atA, atB];
    while (atA < a.length && marksA[atA]) atA += 1;
    while (atB < b.length && marksB[atB]) atB += 1;
    changed += Math.max(atA - startA, atB - startB);
    let equal = 0;
    while (atA + equal < a.length && !marksA[atA + equal] && !marksB[atB + equal]) equal += 1;
    const next = runFrom(marksA, atA + equal) + runFrom(marksB, atB + equal);
    if (equal && equal <= 2 && changed >= 4 * equal && next >= 4 * equal) {
      marksA.fill(1, atA, atA + equal);
      marksB.fill(1, atB, atB + equal);
      changed += equal;
    } else if (equal) changed = 0;
    [atA, atB] = [atA + equal, atB + equal];
  }
}

/** Return how many words from a place on differ, up to as many as matter. */
function runFrom(marks, at) {
  let run = 0;
  while (run < 8 && marks[at + run]) run += 1;
  return run;
}

function render(words, marks, tag) {
  const fragment = document.createDocumentFragment();
  for (let at = 0; at < words.length; ) {
    const start = at;
    while (at < words.length && marks[at] === marks[start]) at += 1;
    const text = words.slice(start, at).join("");
    if (marks[start]) fragment.append(...marked(text, tag));
    else fragment.append(text);
  }
  return fragment;
}

/** The spaces after a change are not part of it. */
function marked(text, tag) {
  const end = text.trimEnd().length || text.length;
  const mark = document.createElement(tag);
  mark.textContent = text.slice(0, end);
  return [mark, text.slice(end)];
}
