// A file in pieces, each asked for when the one before it has arrived.
const PIECE = 1 << 19;
function render({ model, el }) {
  const [label, input, bar, said] = ["label", "input", "progress", "span"].map((name) => document.createElement(name));
  Object.assign(input, { type: "file", accept: SETTINGS.kinds });
  bar.hidden = true;
  bar.setAttribute("aria-label", "upload");
  label.append(SETTINGS.label, " ", input);
  el.classList.add("demo-upload");
  el.append(label, bar, said);
  let file = null;
  const send = async (start) => {
    const part = await file.slice(start, start + PIECE).arrayBuffer();
    model.send({ name: file.name, size: file.size, start }, undefined, [part]);
  };
  input.addEventListener("change", () => {
    file = input.files[0] ?? null;
    if (!file) return;
    Object.assign(bar, { hidden: false, max: Math.max(1, file.size), value: 0 });
    send(0);
  });
  model.on("msg:custom", ({ have }) => {
    if (!file) return;
    bar.value = have;
    const done = have >= file.size;
    said.textContent = ` ${done ? "read" : "reading"} ${(have / 1e6).toFixed(1)} of ${(file.size / 1e6).toFixed(1)} MB`;
    if (!done) return send(have);
    file = null;
    bar.hidden = true;
    input.value = ""; // the same file may be chosen again
  });
}
export default { render };
