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

  for (const box of document.querySelectorAll("[data-part]")) box.sent = box.innerHTML;
  tellTimes(document);
  follow(document);
  setInterval(() => tellTimes(document), 10000);

  document.body.addEventListener("htmx:afterSwap", (event) => tellTimes(event.target));

  // --- a page that changes by itself asks every other second whether it has become another ---
  // No connection is held: a browser has six of them for all tabs together. A hidden tab asks nothing.
  const LOOK = 2000;
  const stale = document.getElementById("stale");
  const busy = "button, input, select, textarea, summary";
  let mark = document.body.dataset.mark;
  let cut = 0;

  // What comes by itself takes no place away from whoever reads, writes or has opened something.
  function replace(box, html) {
    const at = document.activeElement;
    if (box.contains(at) && at.matches(busy)) return false;
    const link = box.contains(at) && at.matches("a") ? at.getAttribute("href") : null;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const ticked = [...box.querySelectorAll("input:checked")].map((one) => one.value);
    const opened = [...box.querySelectorAll("details")].map((one) => one.open);
    const moved = [...box.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    box.innerHTML = html;
    for (const one of box.querySelectorAll("input[type=checkbox]")) one.checked = ticked.includes(one.value);
    box.querySelectorAll("details").forEach((one, i) => { one.open = opened[i] ?? one.open; });
    box.querySelectorAll(".scroll").forEach((one, i) => { one.scrollLeft = moved[i] ?? 0; });
    tellTimes(box);
    if (link) box.querySelector(`a[href="${CSS.escape(link)}"]`)?.focus({ preventScroll: true });
    if ("follow" in box.dataset && atEnd) box.scrollTop = box.scrollHeight;
    return true;
  }

  function take(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const names = (page) => [...page.querySelectorAll("[data-part]")].map((box) => box.dataset.part).join();
    if (names(fresh) !== names(document)) { location.reload(); return; }
    let all = true;
    for (const box of document.querySelectorAll("[data-part]")) {
      const html = fresh.querySelector(`[data-part="${CSS.escape(box.dataset.part)}"]`)?.innerHTML;
      if (html === undefined || html === box.sent) continue;
      if (replace(box, html)) box.sent = html;
      else all = false;
    }
    if (all) mark = fresh.body.dataset.mark ?? mark;
  }

  async function look() {
    if (document.hidden) return true;
    try {
      const answer = await fetch(location.href, {
        headers: { "x-penchant-mark": mark }, redirect: "error", cache: "no-store",
      });
      if (answer.status === 401) { stale.hidden = false; return false; }
      if (answer.status === 200) take(await answer.text());
      else if (answer.status !== 204) throw new Error(String(answer.status));
      cut = 0;
      stale.hidden = true;
    } catch {
      cut ||= Date.now();
      stale.hidden = Date.now() - cut < 5000;
    }
    return true;
  }

  if (mark) {
    let looking = null;
    const turn = async () => { if (await look()) looking = setTimeout(turn, LOOK); };
    looking = setTimeout(turn, LOOK);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && looking !== null) { clearTimeout(looking); looking = null; turn(); }
    });
  }

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
