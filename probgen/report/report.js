"use strict";
// Sorting and filtering of tables. Without it they are complete, in the order of the posterior.
for (const box of document.querySelectorAll(".sortable")) {
  const table = box.querySelector("table"), body = table.tBodies[0], rows = Array.from(body.rows);
  const [tools, input, count] = ["div", "input", "output"].map((tag) => document.createElement(tag));
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
  tools.className = "tools";
  input.type = "search";
  input.placeholder = "Filter by name, e.g. theta";
  input.setAttribute("aria-label", "Filter rows by name");
  count.textContent = rows.length + " rows";
  tools.append(input, count);
  box.prepend(tools);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = wanted ? shown + " of " + rows.length + " rows" : rows.length + " rows";
  });
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "name";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // Numbers start with the largest, names with A; another click turns the order round.
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : column > 0;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const x = number(key(a)), y = number(key(b));
        if (Number.isNaN(x) || Number.isNaN(y)) {
          // What is no number stands last, whatever the direction.
          if (column > 0) return Number.isNaN(x) - Number.isNaN(y);
          return (down ? -1 : 1) * key(a).localeCompare(key(b), undefined, { numeric: true });
        }
        return down ? y - x : x - y;
      };
      body.append(...rows.sort(compare));
    });
  });
}
