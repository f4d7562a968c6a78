// Times as people say them, keys, colours, density, what lies under a pointer in a chart, the palette, and logs
// that follow. Every page works without this file.
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

  // --- charts: a part of the rounds, by dragging, by two fingers, and by Shift with the arrow keys and Enter ---
  // It fills in the form that does the same without this file.
  function partOf(chart) {
    const form = document.getElementById(chart.dataset.zoom ?? "");
    if (!form) return null;
    const shade = chart.appendChild(document.createElement("div"));
    shade.className = "part";
    shade.hidden = true;
    let from = null;
    let to = null;
    const ends = (hit) => [Number(hit.dataset.first), Number(hit.dataset.last)];
    const clear = () => { from = to = null; shade.hidden = true; };
    const reach = (hit) => {
      if (!hit?.dataset.first) return;
      from ??= hit;
      to = hit;
      const box = chart.getBoundingClientRect();
      const sides = [from, to].map((one) => one.querySelector("rect").getBoundingClientRect());
      const left = Math.min(...sides.map((one) => one.left));
      shade.style.left = `${left - box.left}px`;
      shade.style.width = `${Math.max(...sides.map((one) => one.right)) - left}px`;
      shade.hidden = from === to;
    };
    const go = () => {
      if (!from || from === to) return clear();
      const all = [...ends(from), ...ends(to)];
      form.elements.namedItem("first").value = Math.min(...all);
      form.elements.namedItem("last").value = Math.max(...all);
      form.submit();
    };
    const whole = () => document.getElementById("whole")?.click();
    const under = (x) => [...chart.querySelectorAll(".hit[data-first]")].filter((one) => one.checkVisibility())
      .find((one) => { const side = one.querySelector("rect").getBoundingClientRect(); return x >= side.left && x <= side.right; });
    let down = null;
    const fingers = new Map();
    const up = (event) => {
      const pinched = fingers.size === 2;
      fingers.delete(event.pointerId);
      if (event.pointerType !== "touch" && down === null) return;
      if (event.pointerType === "touch" && !pinched) return;
      down = null;
      if (event.type === "pointercancel") clear();
      else go();
    };
    chart.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") fingers.set(event.pointerId, event.clientX);
      else if (event.button === 0) { clear(); down = event.clientX; }
      for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, up, { once: true });
    });
    chart.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event.clientX);
      const spots = fingers.size === 2 ? [...fingers.values()] : down !== null && Math.abs(event.clientX - down) > 8 ? [down, event.clientX] : [];
      if (!spots.length) return;
      from = null;
      for (const x of spots) reach(under(x));
      event.preventDefault();
    });
    chart.addEventListener("dblclick", whole);
    return {
      clear,
      reach,
      key(event, at) {
        if (event.key === "Enter" && from) { event.preventDefault(); go(); return true; }
        if (event.key === "Backspace") { event.preventDefault(); whole(); return true; }
        if (event.key === "Escape") clear();
        if (event.shiftKey && event.key.startsWith("Arrow") && !from) reach(at);
        return false;
      },
    };
  }

  // --- charts: the values under a pointer or a finger, and with the arrow keys ---
  function readable(root) {
    for (const chart of root.querySelectorAll(".chart > div")) {
      if (!chart.querySelector(".hit")) continue;
      chart.tabIndex = 0;
      chart.dataset.chart = "";
      const tip = chart.appendChild(document.createElement("output"));
      tip.className = "tip";
      tip.hidden = true;
      const hits = () => [...chart.querySelectorAll(".hit")].filter((one) => one.checkVisibility());
      let at = null;
      const show = (hit) => {
        chart.querySelector(".hit.at")?.classList.remove("at");
        at = hit;
        tip.hidden = !hit;
        if (!hit) return;
        const title = hit.querySelector("title");
        if (title) { hit.dataset.said = title.textContent; title.remove(); }  // no second one by the browser
        hit.classList.add("at");
        tip.textContent = hit.dataset.said;
        const line = (hit.querySelector("line, .mark") ?? hit).getBoundingClientRect();
        const box = chart.getBoundingClientRect();
        const left = line.left - box.left + 10;
        const turned = left + tip.offsetWidth > box.width;
        tip.style.left = `${Math.max(turned ? left - tip.offsetWidth - 20 : left, 0)}px`;
      };
      const over = (event) => show(event.target.closest?.(".hit"));
      const part = partOf(chart);
      chart.addEventListener("pointermove", over);
      chart.addEventListener("pointerdown", over);
      chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(null); });
      chart.addEventListener("blur", () => { show(null); part?.clear(); });
      chart.addEventListener("keydown", (event) => {
        if (part?.key(event, at)) return;
        const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
        if (event.key === "Escape") show(null);
        if (step === undefined) return;
        event.preventDefault();
        const all = hits();
        const now = at ? all.indexOf(at) : step > 0 ? -1 : all.length;
        show(all[Math.min(Math.max(now + step, 0), all.length - 1)]);
        if (event.shiftKey) part?.reach(at);
        else part?.clear();
      });
    }
  }

  for (const box of document.querySelectorAll("[data-part]")) box.sent = box.innerHTML;
  tellTimes(document);
  follow(document);
  readable(document);
  setInterval(() => tellTimes(document), 10000);

  document.body.addEventListener("htmx:afterSwap", (event) => tellTimes(event.target));

  // --- a page that changes by itself asks every other second whether it has become another ---
  // No connection is held: a browser has six of them for all tabs together. A hidden tab asks nothing.
  const LOOK = 2000;
  const stale = document.getElementById("stale");
  const busy = "button, input, select, textarea, summary, [data-chart]";
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
    const moved = [...box.querySelectorAll(".scroll")].map((one) => [one.scrollLeft, one.scrollTop]);
    box.innerHTML = html;
    for (const one of box.querySelectorAll("input[type=checkbox]")) one.checked = ticked.includes(one.value);
    box.querySelectorAll("details").forEach((one, i) => { one.open = opened[i] ?? one.open; });
    box.querySelectorAll(".scroll").forEach((one, i) => { [one.scrollLeft, one.scrollTop] = moved[i] ?? [0, 0]; });
    tellTimes(box);
    readable(box);
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

  // --- density ---
  const rows = document.getElementById("density");
  function showDensity() {
    const compact = document.documentElement.dataset.density === "compact";
    rows.setAttribute("aria-label", `Rows: ${compact ? "compact" : "comfortable"}`);
    rows.title = rows.getAttribute("aria-label");
  }
  if (rows) {
    showDensity();
    rows.addEventListener("click", () => {
      const root = document.documentElement.dataset;
      if (root.density === "compact") delete root.density;
      else root.density = "compact";
      try { localStorage.setItem("penchant-density", root.density ?? "comfortable"); } catch { /* private mode */ }
      showDensity();
    });
  }

  // --- the palette: find anything, and act ---
  const palette = document.getElementById("palette");
  const field = palette?.querySelector("input");
  function openPalette() {
    palette.showModal();
    field.select();
    field.dispatchEvent(new Event("opened"));
  }
  // Enter goes to what was written, also where the answer to it is still on its way.
  let going = false;
  function go() {
    const shown = document.getElementById("for")?.dataset.search;
    going = shown !== field.value.trim().replace(/\s+/g, " ");
    if (!going) palette.querySelector(".found a")?.click();
  }
  if (palette) {
    document.getElementById("found").addEventListener("htmx:afterSwap", () => { if (going && palette.open) go(); });
    document.getElementById("find")?.addEventListener("click", (event) => { event.preventDefault(); openPalette(); });
    palette.addEventListener("click", (event) => {
      if (event.target === palette) palette.close();  // beside it
      const press = event.target.closest("a")?.dataset.press;
      if (!press) return;
      event.preventDefault();
      palette.close();
      document.getElementById(press)?.click();
    });
    palette.addEventListener("keydown", (event) => {
      const links = [...palette.querySelectorAll(".found a")];
      const now = links.indexOf(document.activeElement);
      if (event.key === "Enter" && event.target === field) { event.preventDefault(); go(); }
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step || !links.length) return;
      event.preventDefault();
      if (now + step < 0) field.focus();
      else links[Math.min(now + step, links.length - 1)].focus();
    });
  }

  // --- keys ---
  let leader = 0;
  document.addEventListener("keydown", (event) => {
    if (palette && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      if (palette.open) palette.close();
      else openPalette();
      return;
    }
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
