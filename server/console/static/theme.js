// Before anything is drawn: the colours and the density that were chosen here, else those of the system.
(() => {
  const chosen = (name) => {
    try { return localStorage.getItem(`penchant-${name}`); } catch { return null; /* private mode */ }
  };
  const root = document.documentElement.dataset;
  if (["light", "dark"].includes(chosen("theme"))) root.theme = chosen("theme");
  if (chosen("density") === "compact") root.density = "compact";
})();
