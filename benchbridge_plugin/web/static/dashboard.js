"use strict";
// What pages can do better with a script. Everything works without it, by forms and reload.

const number = new Intl.NumberFormat("en");

// A run that is under way: asked once a second how far it is, and shown anew when it has ended.
for (const box of document.querySelectorAll("[data-run]")) {
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  part("reload").hidden = true;
  const look = async () => {
    try {
      const answer = await fetch(box.dataset.run, { headers: { Accept: "application/json" }, credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const run = await answer.json();
      if (run.state !== "running") {
        location.reload();
        return;
      }
      const bar = box.querySelector("progress");
      bar.max = run.planned || 1;
      bar.value = run.done || 0;
      const far = run.planned ? `: ${number.format(run.done)} of ${number.format(run.planned)}` : "";
      part("words").textContent = (run.phase || "comparing") + far;
      part("counts").textContent =
        `${number.format(run.synced || 0)} delivered, ${number.format(run.rejected || 0)} refused, ${number.format(run.failed || 0)} to be retried.`;
    } catch {
      part("reload").hidden = false; // the server is away, or the session is over
    }
    setTimeout(look, 1000);
  };
  look();
}

// The address that the server prints has the key behind "#", which no browser sends.
const door = document.querySelector("[data-sign-in]");
const key = new URLSearchParams(location.hash.slice(1)).get("key");
if (door && key) {
  history.replaceState(null, "", location.pathname + location.search);
  door.elements.key.value = key;
  door.requestSubmit();
}
