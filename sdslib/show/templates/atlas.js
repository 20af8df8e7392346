/* Filters, sorts and steps through the atlas; the page reads the same without it. */
for (const root of document.querySelectorAll(".atlas:not([data-ready])")) {
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector(".data").textContent);
  const form = root.querySelector(".controls"), list = root.querySelector(".items");
  const cards = new Map([...list.children].map(card => [card.dataset.id, card]));
  const items = data.items.map((item, place) => ({ ...item, place }));
  const metrics = ["text", "image", "group"];
  const value = name => form.elements[name].value, on = name => form.elements[name].checked;
  let shown = items, at = -1;

  const verdict = (item, model) => model === "" ? null : item.models[model];
  const right = found => found.right[metrics.indexOf(value("metric"))];
  const margin = found => found.margins[metrics.indexOf(value("metric"))];

  function outcome(found) {
    const wanted = value("outcome");
    if (!wanted) return true;
    if (wanted === "right" || wanted === "wrong") return right(found) === (wanted === "right");
    return found.mode === wanted;
  }
  function change(before, after) {
    const wanted = value("change"), a = right(before), b = right(after);
    if (!wanted) return true;
    if (wanted === "flips") return a !== b;
    return wanted === (a ? (b ? "stays right" : "lost") : (b ? "gained" : "stays wrong"));
  }
  function keep(item) {
    const found = verdict(item, value("model"));
    if (!found) return false;
    const [column, ...label] = value("tag").split("\t");
    if (column && !(item.tags[column] || []).includes(label.join("\t"))) return false;
    if (on("ties") && !found.tie) return false;
    if (!outcome(found)) return false;
    if (value("low") !== "" && margin(found) < Number(value("low"))) return false;
    if (value("high") !== "" && margin(found) > Number(value("high"))) return false;
    if (value("against") !== "") {
      const before = verdict(item, value("against"));
      if (!before || !change(before, found)) return false;
    }
    return value("words").toLowerCase().split(/\s+/).every(word => item.words.includes(word));
  }
  function key(item) {
    const found = verdict(item, value("model")), before = verdict(item, value("against"));
    switch (value("sort")) {
      case "smallest margin first": return margin(found);
      case "largest margin first": return -margin(found);
      case "closest first": return Math.abs(margin(found));
      case "largest change first": return before ? -Math.abs(margin(found) - margin(before)) : 0;
      default: return 0;
    }
  }
  function apply() {
    const keys = new Map();
    shown = items.filter(keep);
    shown.forEach(item => keys.set(item, key(item)));
    shown.sort((a, b) => keys.get(a) - keys.get(b) || a.place - b.place);
    const ids = new Set(shown.map(item => item.id));
    for (const [id, card] of cards) card.hidden = !ids.has(id);
    list.append(...shown.map(item => cards.get(item.id)));
    step(on("single") && shown.length ? 0 : -1, false);
  }
  function step(to, follow = true) {
    cards.forEach(card => card.removeAttribute("aria-current"));
    at = shown.length ? Math.max(-1, Math.min(to, shown.length - 1)) : -1;
    if (on("single")) shown.forEach((item, k) => { cards.get(item.id).hidden = k !== Math.max(at, 0); });
    if (at >= 0) {
      const card = cards.get(shown[at].id);
      card.setAttribute("aria-current", "true");
      if (follow) card.scrollIntoView({ block: "nearest" });
    }
    const place = at >= 0 ? `, at ${at + 1}` : "";
    root.querySelector(".count").textContent = `${shown.length} of ${items.length} items${place}`;
  }
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  root.querySelector(".next").addEventListener("click", () => step(at + 1));
  root.querySelector(".previous").addEventListener("click", () => step(Math.max(at - 1, 0)));
  root.addEventListener("keydown", event => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight" || event.key === "j") step(at + 1);
    else if (event.key === "ArrowLeft" || event.key === "k") step(Math.max(at - 1, 0));
    else if (event.key === "/") form.elements.words.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  form.hidden = false;
  apply();
}
