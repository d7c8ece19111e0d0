"use strict";

// Charts: SVG, so that the page's own colours reach their text, and print is sharp.
const views = [];
for (const place of document.querySelectorAll(".chart")) {
  const specification = JSON.parse(place.firstElementChild.textContent);
  const actions = { export: true, source: false, compiled: false, editor: false };
  vegaEmbed(place, specification, { renderer: "svg", actions })
    .then(({ view }) => {
      const drawing = place.querySelector("svg.marks");
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", specification.description);
      views.push(view);
    })
    .catch(console.error);
}

// Tables: a press on a column's name sorts by it, numbers from the highest on first.
function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => row.cells[column]).filter((cell) => !/^–?$/.test(cell.textContent));
  const numeric = cells.every((cell) => "value" in cell.dataset);
  const first = numeric ? "descending" : "ascending";
  const second = numeric ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  const isEmpty = (row) => !cells.includes(row.cells[column]);
  rows.sort((one, other) => {
    if (isEmpty(one) || isEmpty(other)) return isEmpty(one) - isEmpty(other);
    const [a, b] = [one.cells[column], other.cells[column]];
    if (numeric) return sign * (a.dataset.value - b.dataset.value);
    return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("th button")) {
  const head = button.closest("th");
  button.addEventListener("click", () => sortBy(button.closest("table"), head.cellIndex));
}
