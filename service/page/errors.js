// Errors in words: what happened, what the service says about it, and another try where that can help.

import { element } from "./dom.js";

const TITLES = {
  no_reply: "No reply",
  unauthorized: "The service needs an API key",
  forbidden: "This API key may not do that",
  overloaded: "The service is busy",
  deadline_exceeded: "The comparison took too long",
  body_too_large: "The texts are too long for one call",
  unknown_model: "The service does not have this model",
  unknown_domain: "The model does not have this domain",
  engine_failed: "The model failed on this comparison",
  engine_hung: "The model failed on this comparison",
  engine_restarting: "The model restarts",
  shutting_down: "The service stops",
  not_ready: "The service is not ready",
  unavailable: "No replica of the service is available",
  not_served: "These texts were compared with something else",
  page_error: "The page has a fault",
};
const RETRIABLE = new Set(
  "no_reply overloaded deadline_exceeded engine_failed engine_hung engine_restarting shutting_down not_ready unavailable".split(" "),
);

const titleOf = (type) => TITLES[type] ?? (isProxy(type) ? "A proxy refused the call" : "The service refused the input");
const isProxy = (type) => type.startsWith("status_");
const canRetry = (type) => RETRIABLE.has(type) || /^status_5|^status_429/.test(type);

/** Show an error in a place; `retry` runs again what failed. */
export function showError(place, error, retry) {
  const { type = "page_error", message, retryAfter } = error;
  clearError(place);
  place.append(
    element("strong", { textContent: titleOf(type) }),
    element("p", { textContent: message }),
    element("code", { textContent: type }),
  );
  if (canRetry(type)) place.append(retryButton(place, retryAfter ?? 0, retry));
  place.hidden = false;
}

export function clearError(place) {
  clearInterval(Number(place.dataset.ticks));
  place.hidden = true;
  place.replaceChildren();
}

/** Return a button that waits as long as the service asks for. */
function retryButton(place, seconds, retry) {
  const button = element("button", { type: "button", className: "retry" });
  let left = seconds;
  const show = () => {
    button.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
    button.disabled = left > 0;
    if (left <= 0) clearInterval(Number(place.dataset.ticks));
    left -= 1;
  };
  if (seconds > 0) place.dataset.ticks = setInterval(show, 1000);
  show();
  button.addEventListener("click", retry);
  return button;
}
