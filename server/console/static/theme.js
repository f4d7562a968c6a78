// Before anything is drawn: the colours that were chosen here, else those of the system.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("penchant-theme"); } catch { /* private mode */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
