"use strict";
/* The page's script: sorting and filtering of the board, and the pictures with the tables that stand for them. */
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = JSON.parse(one("#data").textContent);
  const byId = new Map(data.agents.map((agent) => [agent.id, agent]));

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const text = (value, digits = 4) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    return size >= 1e5 || (size > 0 && size < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
  };
  const cell = (value) => (typeof value === "number" ? element("td", { class: "n" }, text(value)) : element("td", {}, text(value)));

  /* ---- theme ---- */
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("theme", value); } catch { /* private window: not kept */ } } };
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const themeButton = one("#theme");
  const setTheme = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    themeButton.setAttribute("aria-pressed", String(isDark()));
  };
  setTheme(stored.get());
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    stored.set(document.documentElement.dataset.theme);
    drawAll();
  });
  dark.addEventListener("change", () => { setTheme(null); drawAll(); });

  const probe = document.body.appendChild(element("span", { hidden: "" }));
  const color = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const faded = (rgb, alpha) => rgb.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);

  /* ---- board ---- */
  const board = one("#board");
  const body = one("tbody", board);
  const rows = all("tr", body);
  const heads = all("thead tr:last-child th", board);
  const FIRST = 4; // columns before those that `data.cells` holds
  let sorted = { column: FIRST, down: true };

  const sortKey = (row, column) => {
    const found = row.cells[column];
    if (row.classList.contains("failed") && column >= FIRST) return null;
    if (found.dataset.v === undefined) return found.textContent.toLowerCase();
    return found.dataset.v === "" ? null : Number(found.dataset.v);
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
  heads.forEach((head, column) => one("button", head).addEventListener("click", () => {
    const down = sorted.column === column ? !sorted.down : head.classList.contains("n");
    sorted = { column, down };
    sortBoard();
  }));

  const filterBoard = () => {
    const wanted = one("#find").value.trim().toLowerCase();
    const kinds = new Set(all("#filters input:checked").map((input) => input.value));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !kinds.has(row.dataset.kind) || !row.cells[0].textContent.toLowerCase().includes(wanted);
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
    data.cells[suite()].forEach((cells, k) => cells.forEach(([html, value], j) => {
      const target = whole[k].cells[FIRST + j];
      target.innerHTML = html; // formatted, and escaped, when the page was written
      target.dataset.v = value === null ? "" : value;
    }));
    sortBoard();
  };
  const suiteChosen = (event) => {
    for (const select of [one("#suite"), one("#board-suite")]) select.value = event.target.value;
    showSuite();
    tradeOff();
    cost();
  };
  one("#suite").addEventListener("change", suiteChosen);
  one("#board-suite").addEventListener("change", suiteChosen);

  /* ---- pictures ---- */
  const tables = new Map(); // id of a picture -> {head, rows}
  const SYMBOLS = { native: "circle", rule: "square", learned: "diamond", llm: "triangle-up" };
  const KIND_COLORS = { native: "--c0", rule: "--c5", learned: "--c1", llm: "--c2" };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const DASH_ARRAYS = ["", "6 4", "2 3", "6 3 2 3", "11 4", "11 3 2 3"];

  const axis = (title, more = {}) => ({
    title: { text: title, standoff: 6 }, gridcolor: faded(color("--line"), 0.6), linecolor: color("--line"),
    tickcolor: color("--line"), ticks: "outside", ticklen: 4, showline: true, zeroline: false, fixedrange: true, ...more,
  });
  /** A logarithmic axis over some values, with ticks that are written out. */
  const logAxis = (title, values, more = {}) => {
    const good = values.filter((value) => value > 0);
    const low = Math.log10(Math.min(...good)) - 0.12;
    const high = Math.log10(Math.max(...good)) + 0.12;
    const steps = high - low < 1.2 ? [1, 1.5, 2, 3, 4, 5, 7] : high - low < 2.6 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++) for (const step of steps) ticks.push(step * 10 ** power);
    const short = (value) => (value >= 1e9 ? `${value / 1e9}G` : value >= 1e6 ? `${value / 1e6}M` : value >= 1e4 ? `${value / 1e3}k`
      : String(Number(value.toPrecision(3))));
    return axis(title, { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map(short), ...more });
  };
  const draw = (id, traces, layout, alt, table) => {
    const place = one(`#${id}`);
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${alt} The table below the picture holds the numbers.`);
    tables.set(id, table);
    fillTables(id);
    if (!window.Plotly) return;
    Plotly.react(place, traces, {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      margin: { l: 58, r: 14, t: 30, b: 48 }, showlegend: false,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      hoverlabel: { bgcolor: color("--raised"), bordercolor: color("--line"), font: { color: color("--text") }, align: "left" },
      ...layout,
    }, { displayModeBar: false, displaylogo: false, scrollZoom: false, doubleClick: false, showTips: false });
  };
  const fillTables = (id) => {
    for (const details of all(".numbers").filter((each) => each.dataset.of.split(" ").includes(id))) {
      if (!details.open) continue;
      all(".scroll", details).forEach((old) => old.remove());
      for (const part of details.dataset.of.split(" ")) {
        const table = tables.get(part);
        if (!table) continue;
        const head = element("tr", {}, ...table.head.map((title, k) => element("th", k ? { scope: "col", class: "n" } : { scope: "col" }, title)));
        const lines = table.rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest.map(cell)));
        const made = element("table", {}, element("caption", { class: "hidden" }, table.title), element("thead", {}, head), element("tbody", {}, ...lines));
        details.append(element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.title }, made));
      }
    }
  };
  for (const details of all(".numbers")) details.addEventListener("toggle", () => fillTables(details.dataset.of.split(" ")[0]));

  const spread = (triples, scale = 1) => ({
    type: "data", symmetric: false, thickness: 1, width: 0,
    array: triples.map(([value, , high]) => (high === null ? 0 : scale * (high - value))),
    arrayminus: triples.map(([value, low]) => (low === null ? 0 : scale * (value - low))),
  });
  const interval = ([value, low, high], scale = 1) => [value, low, high].map((each) => (each === null ? null : scale * each));
  const withInterval = (triple, unit) => `${text(triple[0], 3)}${unit}` + (triple[1] === null ? "" : ` [${text(triple[1], 3)}, ${text(triple[2], 3)}]`);

  /** Names beside points, where they overlap neither points nor other names: Plotly text positions, "" for none. */
  const placeNames = (points, size) => {
    const taken = points.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
    const free = (box) => box[0] >= 0 && box[1] >= 0 && box[2] <= size.width && box[3] <= size.height
      && !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
    return points.map(({ x, y, name }) => {
      const width = 6.4 * name.length;
      const boxes = {
        "middle right": [x + 7, y - 7, x + 7 + width, y + 7], "middle left": [x - 7 - width, y - 7, x - 7, y + 7],
        "top center": [x - width / 2, y - 21, x + width / 2, y - 7], "bottom center": [x - width / 2, y + 7, x + width / 2, y + 21],
        "top right": [x, y - 21, x + width, y - 7], "bottom right": [x, y + 7, x + width, y + 21],
        "top left": [x - width, y - 21, x, y - 7], "bottom left": [x - width, y + 7, x, y + 21],
      };
      const found = Object.keys(boxes).find((position) => free(boxes[position]));
      if (found) taken.push(boxes[found]);
      return found || "";
    });
  };
  /** Points of agents, by kind, with names where there is room. `points`: {agent, x, y} with [value, low, high] each. */
  const scatter = (id, points, xaxis, yaxis, more) => {
    const place = one(`#${id}`);
    const margin = { l: 58, r: 14, t: 30, b: 48 };
    const size = { width: place.clientWidth - margin.l - margin.r, height: place.clientHeight - margin.t - margin.b };
    const share = (value, range, log) => ((log ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);
    const names = placeNames(points.map(({ agent, x, y }) => ({
      name: agent.label, x: share(x[0], xaxis.range, xaxis.type === "log") * size.width,
      y: (1 - share(y[0], yaxis.range)) * size.height,
    })), size);
    const traces = Object.entries(data.kinds).map(([kind, title]) => {
      const chosen = points.map((point, k) => ({ ...point, name: names[k] })).filter(({ agent }) => agent.kind === kind);
      return {
        type: "scatter", mode: "markers+text", name: title, x: chosen.map(({ x }) => x[0]), y: chosen.map(({ y }) => y[0]),
        error_x: { ...spread(chosen.map(({ x }) => x)), color: faded(color(KIND_COLORS[kind]), 0.55) },
        error_y: { ...spread(chosen.map(({ y }) => y)), color: faded(color(KIND_COLORS[kind]), 0.55) },
        marker: { symbol: SYMBOLS[kind], size: 10, color: color(KIND_COLORS[kind]), line: { width: 1, color: color("--ground") } },
        text: chosen.map(({ agent, name }) => (name ? agent.label : "")), textposition: chosen.map(({ name }) => name || "top center"),
        textfont: { size: 12, color: color("--text") }, customdata: chosen.map(({ agent, x, y }) => [agent.label, more.hover(x, y)]),
        hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
      };
    }).filter((trace) => trace.x.length);
    draw(id, traces, { xaxis, yaxis, margin, showlegend: true, shapes: more.shapes || [], annotations: more.annotations || [] }, more.alt, more.table);
  };
  const padded = (triples, share = 0.06) => {
    const ends = triples.flat().filter((value) => value !== null);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const pad = share * (high - low || 1);
    return [low - pad, high + pad];
  };
  const title = (select) => one(select).selectedOptions[0].textContent;

  const LEAST = 80; // per cent of utilisation
  const tradeOff = () => {
    const name = one("#delay").value;
    const points = data.agents.flatMap((agent) => {
      const metrics = agent.metrics[suite()];
      if (!metrics || !metrics[name] || !metrics.utilisation || metrics[name][0] === null) return [];
      return [{ agent, x: metrics[name].map((each) => (each === null ? null : Math.max(each, 0.01))), y: interval(metrics.utilisation, 100) }];
    });
    const low = points.filter(({ y }) => y[0] < LEAST);
    const zoomed = one("#zoom").checked && low.length > 0 && low.length < points.length;
    const seen = zoomed ? points.filter(({ y }) => y[0] >= LEAST) : points;
    one("#left-out").textContent = zoomed ? `Left out, with less utilisation than ${LEAST} %: ${low.map(({ agent, y }) => `${agent.label} (${text(y[0], 3)} %)`).join(", ")}.` : "";
    if (!points.length) return;
    const yaxis = axis("utilisation (%)", { range: padded(seen.map(({ y }) => y)) });
    scatter("plot-trade-off", seen, logAxis("queue delay (ms)", seen.flatMap(({ x }) => x)), yaxis, {
      hover: (x, y) => `delay ${withInterval(x, " ms")}<br>utilisation ${withInterval(y, " %")}`,
      annotations: [{ xref: "paper", yref: "paper", x: 0.01, y: 0.99, xanchor: "left", yanchor: "top", showarrow: false, text: "↖ better", font: { color: color("--soft") } }],
      alt: `Scatter of ${seen.length} agents: delay of the ${title("#delay")}, against utilisation, suite ${suite()}.`,
      table: { title: "Delay and utilisation", head: ["agent", "kind", "delay, ms", "low", "high", "utilisation, %", "low", "high"],
        rows: points.map(({ agent, x, y }) => [agent.label, data.kinds[agent.kind], ...x, ...y]) },
    });
  };
  for (const name of ["#delay", "#zoom"]) one(name).addEventListener("change", () => tradeOff());

  const gap = () => {
    const agents = data.agents.filter(({ scores }) => scores.test && scores.shift);
    const part = one("#gap");
    part.hidden = !agents.length;
    if (!agents.length) return;
    const up = [...agents].reverse();
    one("#plot-gap").style.height = `${90 + 34 * up.length}px`;
    const narrow = one("#plot-gap").clientWidth < 560;
    const trace = (of, shape, paint, shift) => ({
      type: "scatter", mode: "markers", name: of, x: up.map(({ scores }) => scores[of][0]), y: up.map((_, k) => k + shift),
      error_x: { ...spread(up.map(({ scores }) => scores[of])), color: faded(color(paint), 0.6) },
      marker: { symbol: shape, size: 10, color: color(paint) }, customdata: up.map(({ label, scores }) => [label, withInterval(scores[of], "")]),
      hovertemplate: `<b>%{customdata[0]}</b><br>${of} %{customdata[1]}<extra></extra>`,
    });
    const links = up.map(({ scores }, k) => ({ type: "line", x0: scores.test[0], x1: scores.shift[0], y0: k + 0.12, y1: k - 0.12, line: { color: color("--line"), width: 2 }, layer: "below" }));
    /* On a narrow screen the names stand over the points, not beside the axis. */
    const over = up.map(({ label }, k) => ({ x: 0, xref: "paper", y: k + 0.22, text: label, xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 11 } }));
    draw("plot-gap", [trace("test", "circle", "--c0", 0.12), trace("shift", "diamond-open", "--c1", -0.12)], {
      xaxis: axis("normalised score", { range: padded(agents.flatMap(({ scores }) => [scores.test, scores.shift])) }),
      yaxis: axis("", { tickvals: up.map((_, k) => k), ticktext: up.map(({ label }) => label), showticklabels: !narrow, automargin: true, range: [-0.7, up.length - (narrow ? 0 : 0.3)] }),
      shapes: links, showlegend: true, annotations: narrow ? over : [], margin: { l: narrow ? 10 : 58, r: 14, t: 30, b: 48 },
    }, `Normalised scores of ${agents.length} agents on the suites test and shift.`, {
      title: "Scores on test and shift", head: ["agent", "test", "low", "high", "shift", "low", "high"],
      rows: agents.map(({ label, scores }) => [label, ...scores.test, ...scores.shift]),
    });
  };

  const cost = () => {
    const name = one("#price").value;
    const points = data.agents.filter((agent) => agent[name] > 0 && agent.scores[suite()]).map((agent) => ({ agent, x: [agent[name], null, null], y: agent.scores[suite()] }));
    const lacking = data.agents.length - points.length;
    const latency = name === "latency_us";
    one("#cost-note").textContent = (latency ? "Time of one decision for one environment, in Python. Vertical lines: the time that a packet of 1500 bytes takes on a link of that rate. " : "")
      + (lacking ? `${lacking} agents without this cost are left out: native disciplines decide inside the simulator, rules have no parameters. ` : "")
      + `Scores are of the suite ${suite()}.`;
    one("#plot-cost").hidden = !points.length;
    if (!points.length) return;
    const rates = latency ? [8, 40, 200] : [];
    const xaxis = logAxis(latency ? "time of one decision (µs)" : "parameters", [...points.map(({ x }) => x[0]), ...rates.map((rate) => 12000 / rate)]);
    scatter("plot-cost", points, xaxis, axis("normalised score", { range: padded(points.map(({ y }) => y), 0.1) }), {
      hover: (x, y) => `${text(x[0], 3)}${latency ? " µs" : " parameters"}<br>score ${withInterval(y, "")}`,
      shapes: rates.map((rate) => ({ type: "line", xref: "x", yref: "paper", x0: 12000 / rate, x1: 12000 / rate, y0: 0, y1: 1, line: { color: color("--line"), dash: "dot", width: 1.5 }, layer: "below" })),
      annotations: rates.map((rate) => ({ x: Math.log10(12000 / rate), xref: "x", y: 0, yref: "paper", yanchor: "bottom", xanchor: "left", textangle: -90, showarrow: false, text: `${rate} Mbit/s`, font: { size: 11, color: color("--soft") } })),
      alt: `Scatter of ${points.length} agents: ${title("#price")} against the normalised score, suite ${suite()}.`,
      table: { title: "Cost and score", head: ["agent", latency ? "decision, µs" : "parameters", "score", "low", "high"], rows: points.map(({ agent, x, y }) => [agent.label, x[0], ...y]) },
    });
  };
  one("#price").addEventListener("change", () => cost());

  /* ---- agents that are compared ---- */
  const MOST = 6;
  const slots = new Array(MOST).fill(null); // colour and dash -> entry
  const label = (name) => (byId.has(name) ? byId.get(name).label : name);
  const comparable = [...new Set([...data.agents.map(({ id }) => id), ...data.series.map(({ name }) => name)])];
  const style = (name) => {
    const slot = slots.indexOf(name);
    return { color: color(`--c${slot}`), dash: DASHES[slot], width: 2 };
  };
  const chooser = one("#choices");
  for (const name of comparable) {
    const input = element("input", { type: "checkbox", value: name });
    chooser.append(element("label", {}, input, " ", element("span", { class: "line" }), label(name)));
  }
  const showChoice = () => {
    const full = slots.every((slot) => slot !== null);
    for (const input of all("input", chooser)) {
      const slot = slots.indexOf(input.value);
      input.checked = slot >= 0;
      input.disabled = full && slot < 0;
      one(".line", input.parentElement).innerHTML = slot < 0 ? "" : `<svg width="28" height="10" aria-hidden="true"><line x1="0" x2="28" y1="5" y2="5" stroke="var(--c${slot})" stroke-width="2.5" stroke-dasharray="${DASH_ARRAYS[slot]}"/></svg>`;
    }
    for (const table of all("#heat table")) table.hidden = !slots.includes(table.dataset.agent);
    curves();
    runs();
  };
  chooser.addEventListener("change", ({ target }) => {
    if (target.checked) slots[slots.indexOf(null)] = target.value;
    else slots[slots.indexOf(target.value)] = null;
    showChoice();
  });
  const chosen = (names) => slots.filter((name) => name !== null && names.includes(name));

  const curveSelect = one("#curve");
  for (const name of Object.keys(data.suites)) {
    const options = Object.keys(data.curves).filter((key) => key.startsWith(`${name}/`)).map((key) => element("option", { value: key }, key.slice(name.length + 1)));
    if (options.length) curveSelect.append(element("optgroup", { label: name }, ...options));
  }
  const paper = [...curveSelect.options].find((option) => option.textContent === "l4s-llm-testbed");
  if (paper) curveSelect.value = paper.value;
  const curves = () => {
    const found = data.curves[curveSelect.value] || {};
    const names = chosen(Object.keys(found));
    const tail = one("#tail").value === "tail";
    for (const cls of ["L", "C"]) {
      const range = names.flatMap((name) => found[name][cls]).map((value) => Math.max(value, 0.01));
      const queue = cls === "L" ? "L4S queue" : "Classic queue";
      draw(`plot-cdf-${cls}`, names.map((name) => ({
        type: "scatter", mode: "lines", name: label(name), line: style(name), x: found[name][cls].map((value) => Math.max(value, 0.01)),
        y: data.quantiles.map((q) => (tail ? (q < 1 ? 100 * (1 - q) : null) : 100 * q)), hovertemplate: `<b>${label(name)}</b><br>%{y:.4~g} %: %{x:.3~g} ms<extra></extra>`,
      })), {
        xaxis: logAxis("queue delay (ms)", range.length ? range : [1]), margin: { l: 58, r: 14, t: 10, b: 48 },
        yaxis: tail ? logAxis("packets above (%)", [0.01, 100]) : axis("packets below (%)", { range: [0, 101] }),
      }, `Distribution of the delay of the ${queue} on ${curveSelect.value} for ${names.map(label).join(", ")}.`, {
        title: `${queue}: delay in ms at quantiles`, head: [queue, ...[0.1, 0.5, 0.9, 0.95, 0.99, 0.999].map((q) => `p${100 * q}`), "max"],
        rows: names.map((name) => [label(name), ...[0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1].map((q) => found[name][cls][data.quantiles.indexOf(q)] ?? null)]),
      });
    }
  };
  curveSelect.addEventListener("change", () => curves());
  one("#tail").addEventListener("change", () => curves());

  const scenarioSelect = one("#scenario");
  for (const name of new Set(data.series.map(({ scenario }) => scenario))) scenarioSelect.append(element("option", {}, name));
  one("#series-part").previousElementSibling.hidden = one("#series-part").hidden = !data.series.length;
  const mean = (values) => {
    const good = values.filter((value) => value !== null);
    return good.length ? good.reduce((a, b) => a + b, 0) / good.length : null;
  };
  const runs = () => {
    const there = data.series.filter(({ scenario }) => scenario === scenarioSelect.value);
    const names = chosen(there.map(({ name }) => name));
    const shown = names.map((name) => there.find((each) => each.name === name));
    if (there.length) one("#series-note").textContent = `One run, seed ${there[0].seed}, in steps of ${there[0].step_ms} ms, warm-up included: mean delay of the packets that left, share of packets marked or dropped, goodput of all flows of the class. ` + (names.length < slots.filter(Boolean).length ? "Not all chosen agents have a run on this scenario." : "");
    const panels = [["delay (ms)", (s, cls) => s.delay_ms[cls]], ["marked or dropped (%)", (s, cls) => s.mark_rate[cls].map((mark, k) => (mark === null ? null : 100 * (mark + s.drop_rate[cls][k])))], ["goodput (Mbit/s)", (s, cls) => s.goodput_mbps[cls]]];
    for (const cls of ["L", "C"]) {
      const layout = { margin: { l: 58, r: 14, t: 10, b: 48 }, xaxis: axis("time (s)", { anchor: "y3" }) };
      const traces = panels.flatMap(([, get], k) => shown.map((s) => ({
        type: "scatter", mode: "lines", name: label(s.name), line: { ...style(s.name), width: 1.3 }, yaxis: k ? `y${k + 1}` : "y",
        x: s.goodput_mbps[cls].map((_, step) => Number(((step + 0.5) * s.step_ms * 1e-3).toPrecision(6))), y: get(s, cls), hovertemplate: `<b>${label(s.name)}</b> %{x} s: %{y:.3~g}<extra></extra>`,
      })));
      panels.forEach(([name], k) => { layout[k ? `yaxis${k + 1}` : "yaxis"] = axis(name, { domain: [1 - (k + 1) / 3 + 0.03, 1 - k / 3 - 0.02], rangemode: "tozero" }); });
      const queue = cls === "L" ? "L4S queue" : "Classic queue";
      draw(`plot-series-${cls}`, traces, layout, `Time series of the ${queue} on ${scenarioSelect.value} for ${names.map(label).join(", ")}: delay, signals, goodput.`, {
        title: `${queue}: means and largest steps`, head: [queue, "mean delay, ms", "largest, ms", "marked or dropped, %", "goodput, Mbit/s"],
        rows: shown.map((s) => [label(s.name), mean(panels[0][1](s, cls)), Math.max(...s.delay_ms[cls]), mean(panels[1][1](s, cls)), mean(panels[2][1](s, cls))]),
      });
    }
  };
  scenarioSelect.addEventListener("change", () => runs());

  /* ---- start ---- */
  const drawAll = () => { tradeOff(); gap(); cost(); showChoice(); };
  one("#chooser").hidden = false;
  data.compared.forEach((name, k) => { if (k < MOST && comparable.includes(name)) slots[k] = name; });
  showSuite();
  filterBoard();
  drawAll();
  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar comes and goes
    clearTimeout(waiting);
    waiting = setTimeout(() => { width = innerWidth; drawAll(); }, 150);
  });
  const openTarget = () => {
    const target = location.hash.startsWith("#from-") && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", openTarget);
  openTarget();
})();
