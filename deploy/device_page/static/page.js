// One key a button: 1, 2, =, b, s, u; files that are dropped; and what an answer to a script refuses. Every page works without this file.
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

// Say one line above the page; none takes it away.
function say(text) {
  let box = document.getElementById("said");
  if (!box && !text) return;
  if (!box) {
    box = document.createElement("div");
    box.id = "said";
    box.className = "flash bad";
    box.setAttribute("role", "alert");
    document.getElementById("main").prepend(box);
  }
  if (box.textContent === text) return;
  box.textContent = text;
  box.hidden = !text;
  if (text) box.scrollIntoView({ block: "nearest" });
}

// A file that is dropped is as good as one that was chosen, where the page takes one; it takes no page's place.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if (kind !== "drop") return;
    const form = document.querySelector("form[data-drop]");
    const given = event.dataTransfer.files;
    if (!form) say("No file is taken here: drop it on My choices.");
    else if (given.length !== 1) say("One file at a time: none was taken.");
    else {
      say("");
      form.querySelector("input[type=file]").files = given;
      form.querySelector("[type=submit]").focus();
    }
  });
}

// A script's request that is refused says so, as the page would that a browser without scripts is shown.
document.addEventListener("htmx:responseError", (event) => {
  const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  const told = page.querySelector(".flash.bad, main .lead");
  say(told ? told.textContent.trim() : "That didn\u2019t work.");
});
