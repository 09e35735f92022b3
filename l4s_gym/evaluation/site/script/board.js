// The board: sorting, filters, suites.

const board = one("#board");
const body = one("tbody", board);
const rows = all("tr", body);
const heads = all("thead tr:last-child th", board);
const FIRST = 1; // columns before those that `data.cells` holds
let sorted = { column: FIRST, down: true };

const sortKey = (row, column) => {
  const value = row.cells[column]?.dataset.v;
  if (value === undefined || value === "") return null;
  return heads[column].classList.contains("n") ? Number(value) : value;
};
const sortBoard = () => {
  const { column, down } = sorted;
  const keyed = rows.map((row) => [sortKey(row, column), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what has no value comes last
    return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
  });
  body.append(...keyed.map(([, row]) => row));
  heads.forEach((head, k) => {
    if (k === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
};
heads.forEach((head, column) =>
  one("button", head).addEventListener("click", () => {
    const down = sorted.column === column ? !sorted.down : head.classList.contains("n");
    sorted = { column, down };
    sortBoard();
  }),
);

const filterBoard = () => {
  const wanted = one("#find").value.trim().toLowerCase();
  const wantedOf = (name) => new Set(all(`#filters .${name} input:checked`).map((input) => input.value));
  const [kinds, classes, forms] = ["kinds", "classes", "forms"].map(wantedOf);
  forms.add(""); // disciplines, which are asked nothing
  let shown = 0;
  for (const row of rows) {
    const chosen = kinds.has(row.dataset.kind) && classes.has(row.dataset.learned) && forms.has(row.dataset.form);
    row.hidden = !chosen || !row.cells[0].textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  one("#shown").textContent = `${shown} of ${rows.length} agents shown`;
};
one("#filters").hidden = false;
one("#filters").addEventListener("input", filterBoard);
for (const form of all("form")) form.addEventListener("submit", (event) => event.preventDefault());

const whole = rows.filter((row) => !row.classList.contains("failed")); // in the order of `data.cells`
const suite = () => one("#suite").value;
const showSuite = () => {
  data.cells[suite()].forEach((cells, k) =>
    cells.forEach(([html, value], j) => {
      const target = whole[k].cells[FIRST + j];
      target.innerHTML = html; // formatted, and escaped, when the page was written
      target.dataset.v = value === null ? "" : value;
    }),
  );
  sortBoard();
};
const suiteChosen = (event) => {
  for (const select of [one("#suite"), one("#board-suite")]) select.value = event.target.value;
  showSuite();
  tradeOff();
  cost();
  profiles();
};
one("#suite").addEventListener("change", suiteChosen);
one("#board-suite").addEventListener("change", suiteChosen);
