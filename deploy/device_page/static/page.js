// One key a button: 1, 2, =, b, s, u; and files that are dropped. Every page works without this file.
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

// A file that is dropped is as good as one that was chosen, where the page takes one; it takes no page's place.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const form = document.querySelector("form[data-drop]");
    if (kind !== "drop" || !form || event.dataTransfer.files.length !== 1) return;
    form.querySelector("input[type=file]").files = event.dataTransfer.files;
    form.querySelector("[type=submit]").focus();
  });
}
