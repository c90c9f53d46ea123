// What all modules of the page share. Text that people type enters the document as textContent and value, never as
// markup.

export const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

export const $ = (id) => document.getElementById(id);
export const fromTemplate = (id) => $(id).content.firstElementChild.cloneNode(true);

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const count = (number) => number.toLocaleString("en");
export const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** Show a text in the status line, which screen readers read out. isSpoken: only for these where there is no room. */
export function announce(text, { isSpoken = false } = {}) {
  $("status").textContent = text;
  $("status").classList.toggle("spoken", isSpoken);
}

/** Return an element with properties and children; texts stay texts. */
export function element(tag, properties = {}, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}

/** Return a pair of a description list, with an explanation below the value. */
export function factOf([name, value, explanation]) {
  const fact = fromTemplate("fact");
  fact.querySelector("dt").textContent = name;
  fact.querySelector("dd").textContent = value;
  if (explanation) fact.append(element("dd", { className: "muted", textContent: explanation }));
  return fact;
}

/** Draw `place` anew, but not while something in it is pressed: its click would be lost with it. */
export function whenReleased(place, draw) {
  if (place.matches(":active")) setTimeout(whenReleased, 50, place, draw);
  else draw();
}

/** Choose an option by its value. Return whether there is one. */
export function choose(select, value) {
  const option = [...select.options].find((one) => one.value === value);
  if (option) option.selected = true;
  return Boolean(option);
}
