// Ctrl+Enter in the box around this widget; before JupyterLab, which would run a cell.
function render({ model, el }) {
  const press = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    if (!el.closest(".demo-panel")?.contains(event.target)) return;
    event.preventDefault();
    event.stopPropagation();
    setTimeout(() => model.send({}), 150); // after what was typed, which is on its way
  };
  document.addEventListener("keydown", press, true);
  return () => document.removeEventListener("keydown", press, true);
}
export default { render };
