/* The atlas's controls: looks up which items are asked for, and shows a page of them. */
for (const root of document.querySelectorAll(".atlas:has(> noscript):not([data-ready])")) {
  root.dataset.ready = "yes";
  const find = selector => root.querySelector(selector);
  const data = JSON.parse(find(".data").textContent), [head, ...rows] = data.rows;
  const form = find(".controls"), list = find(".items"), zoom = find(".zoom"), store = find("noscript");
  const cards = (store.children.length ? store.innerHTML : store.textContent).split("<!--card-->").slice(1);
  const address = root.parentElement === document.body; // a page of its own has one to send
  const sizes = { wall: 48, cards: 10, one: 1 };
  let shown = [], at = 0;

  const value = name => {
    const control = form.elements[name];
    return control.type === "checkbox" && !control.checked ? "" : control.value;
  };
  const key = (names, ...first) => [...first, ...names.map(value)].join("\t");
  const has = (set, n) => parseInt(set[n >> 2], 16) >> (3 - n % 4) & 1;
  const named = name => `“${form.elements[name].labels[0].firstChild.textContent.trim() || name}: ${value(name)}”`;

  function card(n) {
    const shell = document.createElement("template");
    shell.innerHTML = cards[n];
    for (const picture of shell.content.querySelectorAll("img"))
      Object.assign(picture, { tabIndex: 0, role: "button", title: "enlarge" });
    return shell.content.firstElementChild;
  }
  function tile(n) {
    const button = document.createElement("button"), whole = card(n), told = document.createElement("small");
    const models = [value("against"), value("model")].filter(name => name);
    const signs = models.map(model => {
      const right = data.sets[["outcome", model, value("metric"), "right"].join("\t")];
      return has(right, n) ? "✓" : "✗";
    });
    told.textContent = `${data.ids[n]} ${value("metric")} ${signs.join(" → ")}`;
    button.className = `tile ${signs.at(-1) === "✓" ? "holds" : "fails"}`;
    button.dataset.id = data.ids[n];
    button.title = whole.querySelector("figcaption, th.text").textContent;
    for (const picture of whole.querySelectorAll("img")) picture.removeAttribute("tabindex");
    button.append(...whole.querySelectorAll("figure img, .none"), told);
    button.addEventListener("click", () => open("one", n));
    return button;
  }
  function apply() {
    const asked = Object.keys(data.asks).filter(value), sort = value("sort");
    const sets = asked.map(name => data.sets[key(data.asks[name], name)]);
    const order = data.orders[key(data.sorts[sort], sort)];
    const odd = [...asked.filter((_, n) => !sets[n]), ...(order ? [] : ["sort"])];
    const trouble = find(".trouble");
    trouble.hidden = !odd.length;
    trouble.textContent = odd.map(name => `${named(name)} needs another model in “before”`).join("; ");
    const margins = data.margins[key(["model", "metric"])], low = value("low"), high = value("high");
    const words = value("words").toLowerCase().split(/\s+/);
    shown = odd.length ? [] : order.filter(n => sets.every(set => has(set, n))
      && (low === "" || margins[n] >= Number(low)) && (high === "" || margins[n] <= Number(high))
      && words.every(word => data.words[n].includes(word)));
  }
  function draw(to) {
    const view = value("view"), size = sizes[view], last = Math.max(shown.length - 1, 0);
    at = Math.min(Math.max(to, 0), last);
    at -= at % size;
    const part = shown.slice(at, at + size), total = `${shown.length} of ${cards.length} items`;
    list.className = `items ${view}`;
    list.replaceChildren(...part.map(view === "wall" ? tile : card));
    const from = part.length > 1 ? `${at + 1} to ${at + part.length}` : `${at + 1}`;
    find(".count").textContent = part.length < shown.length ? `${total}, at ${from}` : total;
    find(".previous").disabled = !at;
    find(".next").disabled = at + size >= shown.length;
    if (address) history.replaceState(null, "", `#${String(new URLSearchParams(asked())) || (data.begin && "all")}`);
  }
  function asked() {
    const told = [...form.elements].filter(c => c.name && value(c.name) !== (c.options ? c.options[0].value : ""));
    const item = value("view") === "one" || at ? [["item", data.ids[shown[at]]]] : [];
    return [...told.map(control => [control.name, value(control.name)]), ...(shown.length ? item : [])];
  }
  function open(view, n) {
    form.elements.view.value = view;
    draw(shown.indexOf(n));
  }
  function read() { // a link that somebody sent
    const said = new URLSearchParams(address && location.hash.slice(1) || data.begin);
    for (const [name, text] of said) {
      const control = form.elements[name];
      if (control) control.type === "checkbox" ? control.checked = true : control.value = text;
    }
    apply();
    draw(shown.indexOf(data.ids.indexOf(said.get("item"))));
  }
  function save() {
    const file = document.createElement("a");
    const text = "\ufeff" + head + shown.map(n => rows[n]).join("");
    file.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    file.download = "atlas.csv";
    file.click();
    URL.revokeObjectURL(file.href);
  }
  async function copy() { // a file's address is of this machine alone
    const file = location.protocol === "file:" ? decodeURIComponent(location.pathname.split("/").at(-1)) : "";
    const sent = file ? file + location.hash : location.href, said = file ? `copied; send ${file} with it` : "link copied";
    const ways = await navigator.clipboard?.writeText(sent).then(() => said, () => "");
    find(".link").textContent = ways || (file ? `the address bar has it, from “${file}” on` : "the address bar has it");
  }
  function enlarge(picture) {
    zoom.replaceChildren(Object.assign(picture.cloneNode(), { tabIndex: -1, title: "" }), picture.alt);
    zoom.showModal();
  }
  const step = by => draw(at + by * sizes[value("view")]);
  const keys = {
    ArrowRight: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), k: () => step(-1),
    "/": () => form.elements.words.focus(), Escape: () => open(form.elements.view.options[0].value, shown[at]),
  };
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => {
    const first = shown[at];
    if (event.target.name !== "view") apply();
    draw(event.target.name === "view" ? shown.indexOf(first) : 0);
  });
  form.addEventListener("reset", () => setTimeout(() => { apply(); draw(0); }));
  find(".next").addEventListener("click", () => step(1));
  find(".previous").addEventListener("click", () => step(-1));
  find(".csv").addEventListener("click", save);
  find(".link").addEventListener("click", copy);
  find(".link").hidden = !address;
  zoom.addEventListener("click", () => zoom.close());
  list.addEventListener("click", event => event.target.matches("article img") && enlarge(event.target));
  root.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || zoom.open) return;
    if (event.key === "Enter" && event.target.matches("article img")) enlarge(event.target);
    else if (keys[event.key] && !event.target.matches("input, select")) keys[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  if (address) addEventListener("hashchange", () => location.reload());
  form.hidden = false;
  read();
}
