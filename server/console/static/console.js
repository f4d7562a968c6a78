// Times as people say them, keys, colours, and logs that follow. Every page works without this file.
"use strict";
(() => {
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const short = new Intl.DateTimeFormat(undefined, {
    day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
  });
  const UNITS = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];

  function say(seconds) {
    for (const [unit, size] of UNITS) {
      if (Math.abs(seconds) >= size) return relative.format(Math.round(seconds / size), unit);
    }
    return Math.abs(seconds) < 10 ? "just now" : relative.format(Math.round(seconds), "second");
  }

  function tellTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      const text = "clock" in time.dataset ? short.format(at) : say((at - Date.now()) / 1000);
      if (time.textContent !== text) time.textContent = text;
      if (!time.title) time.title = whole.format(at);
    }
  }

  function follow(root) {
    for (const box of root.querySelectorAll("[data-follow]")) box.scrollTop = box.scrollHeight;
  }

  tellTimes(document);
  follow(document);
  setInterval(() => tellTimes(document), 10000);

  // What comes by itself takes no place away from whoever reads, writes or has opened something.
  document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLElement)) return;
    box.wasAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const at = document.activeElement;
    box.at = box.contains(at) && at.matches("a") ? at.getAttribute("href") : null;
    if (box.contains(at) && at.matches("button, input, select")) event.preventDefault();
  });
  document.body.addEventListener("htmx:sseMessage", (event) => {
    const box = event.target;
    tellTimes(box);
    if (box.at) box.querySelector(`a[href="${CSS.escape(box.at)}"]`)?.focus({ preventScroll: true });
    if ("follow" in box.dataset && box.wasAtEnd) box.scrollTop = box.scrollHeight;
  });
  document.body.addEventListener("htmx:afterSwap", (event) => tellTimes(event.target));

  // --- a page that is cut off says so ---
  const stale = document.getElementById("stale");
  let cut = 0;
  document.body.addEventListener("htmx:sseError", () => {
    cut ||= setTimeout(() => { if (stale) stale.hidden = false; }, 5000);
  });
  document.body.addEventListener("htmx:sseOpen", () => {
    clearTimeout(cut);
    cut = 0;
    if (stale) stale.hidden = true;
  });

  // --- choosing submits ---
  for (const select of document.querySelectorAll("select[data-submit]")) {
    const button = document.getElementById(select.dataset.submit);
    if (button) button.hidden = true;
    select.addEventListener("change", () => select.form.requestSubmit(button));
  }
  document.body.addEventListener("htmx:oobAfterSwap", (event) => {
    const field = document.getElementById(event.detail.elt?.dataset?.wrong ?? "");
    if (field) field.setAttribute("aria-invalid", String(event.detail.elt.textContent !== ""));
  });
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent.trim();
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
      catch { button.textContent = "Select it and copy"; }
    });
  }

  // --- colours ---
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const button = document.getElementById("theme");
  function showTheme() {
    const now = document.documentElement.dataset.theme || "system";
    button.setAttribute("aria-label", `Colours: ${now === "system" ? "as the system" : now}`);
    button.title = button.getAttribute("aria-label");
  }
  if (button) {
    showTheme();
    button.addEventListener("click", () => {
      const next = NEXT[document.documentElement.dataset.theme || "system"];
      if (next === "system") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = next;
      try { localStorage.setItem("penchant-theme", next); } catch { /* private mode */ }
      showTheme();
    });
  }

  // --- keys ---
  let leader = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, textarea, select")) return;
    if (event.key === "?") { document.getElementById("keys")?.showModal(); return; }
    if (event.key === "/") {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
      return;
    }
    if (event.key === "g") { leader = Date.now(); return; }
    if (Date.now() - leader < 1500) {
      leader = 0;
      document.querySelector(`.rail a[data-key="${CSS.escape(event.key)}"]`)?.click();
    }
  });
})();
