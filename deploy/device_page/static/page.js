// One key a button: 1, 2, =, b, s, u. Every page works without this file.
"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("input, textarea, select") || document.querySelector("dialog[open], .htmx-request")) return;
  for (const button of document.querySelectorAll("[data-press]:not([disabled])")) {
    if (button.dataset.press.split(" ").includes(event.key)) {
      event.preventDefault();
      button.click();
      return;
    }
  }
});
