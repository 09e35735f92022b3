// How pictures are drawn, and the tables that stand for them.

const tables = new Map(); // id of a picture -> {head, rows}
const SYMBOLS = { native: "circle", rule: "square", learned: "diamond", llm: "triangle-up" };
const KIND_COLORS = { native: "--c0", rule: "--c5", learned: "--c1", llm: "--c2" };
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const DASH_ARRAYS = ["", "6 4", "2 3", "6 3 2 3", "11 4", "11 3 2 3"];

const axis = (title, more = {}) => ({
  title: { text: title, standoff: 6, font: { size: 13 } },
  gridcolor: faded(color("--line"), 0.6),
  linecolor: color("--line"),
  tickcolor: color("--line"),
  ticks: "outside",
  ticklen: 4,
  showline: true,
  zeroline: false,
  fixedrange: true,
  ...more,
});
const atLeast = (ms) => Math.max(ms, 0.01); // 0 has no place on a logarithmic axis
/** A logarithmic axis over some values, with ticks that are written out. */
const logAxis = (title, values, more = {}, sparse = false) => {
  const good = values.filter((value) => value > 0);
  const low = Math.log10(Math.min(...good)) - 0.12;
  const high = Math.log10(Math.max(...good)) + 0.12;
  const steps = sparse ? [1, 3] : high - low < 1.2 ? [1, 1.5, 2, 3, 4, 5, 7] : high - low < 2.6 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power++) for (const step of steps) ticks.push(step * 10 ** power);
  const short = (value) =>
    value >= 1e9
      ? `${value / 1e9}G`
      : value >= 1e6
        ? `${value / 1e6}M`
        : value >= 1e4
          ? `${value / 1e3}k`
          : String(Number(value.toPrecision(3)));
  return axis(title, { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map(short), ...more });
};
const draw = (id, traces, layout, alt, table) => {
  const place = one(`#${id}`);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${alt} The table below the picture holds the numbers.`);
  tables.set(id, table);
  fillTables(id);
  if (!window.Plotly) return;
  Plotly.react(
    place,
    traces,
    {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--text") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      dragmode: false,
      hovermode: "closest",
      margin: { l: 58, r: 14, t: 30, b: 48 },
      showlegend: false,
      legend: {
        orientation: "h",
        x: 0,
        y: 1,
        yanchor: "bottom",
        itemclick: false,
        itemdoubleclick: false,
        font: { size: 13 },
      },
      hoverlabel: {
        bgcolor: color("--raised"),
        bordercolor: color("--line"),
        font: { color: color("--text") },
        align: "left",
      },
      ...layout,
    },
    { displayModeBar: false, displaylogo: false, scrollZoom: false, doubleClick: false, showTips: false },
  );
};
const fillTables = (id) => {
  for (const details of all(".numbers").filter((each) => each.dataset.of.split(" ").includes(id))) {
    if (!details.open) continue;
    all(".scroll", details).forEach((old) => old.remove());
    for (const part of details.dataset.of.split(" ")) {
      const table = tables.get(part);
      if (!table) continue;
      const head = element(
        "tr",
        {},
        ...table.head.map((title, k) => element("th", k ? { scope: "col", class: "n" } : { scope: "col" }, title)),
      );
      const lines = table.rows.map(([first, ...rest]) =>
        element("tr", {}, element("th", { scope: "row" }, first), ...rest.map(cell)),
      );
      const made = element(
        "table",
        {},
        element("caption", { class: "hidden" }, table.title),
        element("thead", {}, head),
        element("tbody", {}, ...lines),
      );
      details.append(element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.title }, made));
    }
  }
};
for (const details of all(".numbers"))
  details.addEventListener("toggle", () => fillTables(details.dataset.of.split(" ")[0]));

const spread = (triples, scale = 1) => ({
  type: "data",
  symmetric: false,
  thickness: 1,
  width: 0,
  array: triples.map(([value, , high]) => (high === null ? 0 : scale * (high - value))),
  arrayminus: triples.map(([value, low]) => (low === null ? 0 : scale * (value - low))),
});
const interval = ([value, low, high], scale = 1) =>
  [value, low, high].map((each) => (each === null ? null : scale * each));
const withInterval = (triple, unit) =>
  `${text(triple[0], 3)}${unit}` + (triple[1] === null ? "" : ` [${text(triple[1], 3)}, ${text(triple[2], 3)}]`);

/** Names beside points, where they overlap neither points nor other names: Plotly text positions, "" for none. */
const placeNames = (points, size) => {
  const taken = points.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
  const free = (box) =>
    box[0] >= 0 &&
    box[1] >= 0 &&
    box[2] <= size.width &&
    box[3] <= size.height &&
    !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
  return points.map(({ x, y, name }) => {
    const width = 6.4 * name.length;
    const boxes = {
      "middle right": [x + 7, y - 7, x + 7 + width, y + 7],
      "middle left": [x - 7 - width, y - 7, x - 7, y + 7],
      "top center": [x - width / 2, y - 21, x + width / 2, y - 7],
      "bottom center": [x - width / 2, y + 7, x + width / 2, y + 21],
      "top right": [x, y - 21, x + width, y - 7],
      "bottom right": [x, y + 7, x + width, y + 21],
      "top left": [x - width, y - 21, x, y - 7],
      "bottom left": [x - width, y + 7, x, y + 21],
    };
    const found = Object.keys(boxes).find((position) => free(boxes[position]));
    if (found) taken.push(boxes[found]);
    return found || "";
  });
};
/** Points of agents, by kind, with names where there is room. `points`: {agent, x, y} with [value, low, high] each. */
const scatter = (id, points, xaxis, yaxis, more) => {
  const place = one(`#${id}`);
  const margin = { l: 58, r: 14, t: 12, b: 48 };
  const size = { width: place.clientWidth - margin.l - margin.r, height: place.clientHeight - margin.t - margin.b };
  const share = (value, range, log) => ((log ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);
  const names = placeNames(
    points.map(({ agent, x, y }) => ({
      name: agent.id,
      x: share(x[0], xaxis.range, xaxis.type === "log") * size.width,
      y: (1 - share(y[0], yaxis.range)) * size.height,
    })),
    size,
  );
  const traces = Object.entries(data.kinds)
    .map(([kind, title]) => {
      const chosen = points
        .map((point, k) => ({ ...point, name: names[k] }))
        .filter(({ agent }) => agent.kind === kind);
      return {
        type: "scatter",
        mode: "markers+text",
        name: title,
        x: chosen.map(({ x }) => x[0]),
        y: chosen.map(({ y }) => y[0]),
        error_x: { ...spread(chosen.map(({ x }) => x)), color: faded(color(KIND_COLORS[kind]), 0.55) },
        error_y: { ...spread(chosen.map(({ y }) => y)), color: faded(color(KIND_COLORS[kind]), 0.55) },
        marker: {
          symbol: SYMBOLS[kind],
          size: 10,
          color: color(KIND_COLORS[kind]),
          line: { width: 1, color: color("--ground") },
        },
        text: chosen.map(({ agent, name }) => (name ? agent.id : "")),
        textposition: chosen.map(({ name }) => name || "top center"),
        textfont: { size: 12, color: color("--text") },
        customdata: chosen.map(({ agent, x, y }) => [agent.id, more.hover(x, y)]),
        hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
      };
    })
    .filter((trace) => trace.x.length);
  draw(
    id,
    traces,
    { xaxis, yaxis, margin, shapes: more.shapes || [], annotations: more.annotations || [] },
    more.alt,
    more.table,
  );
};
/** Dotted lines across a picture at values of its axis "x" or "y"; `lines`: [value, name]. */
const dotted = (along, lines, log = false) => {
  const across = along === "x" ? "y" : "x";
  return {
    shapes: lines.map(([value]) => ({
      type: "line",
      [`${along}0`]: value,
      [`${along}1`]: value,
      [`${across}ref`]: "paper",
      [`${across}0`]: 0,
      [`${across}1`]: 1,
      line: { color: color("--soft"), dash: "dot", width: 1.5 },
      layer: "below",
    })),
    annotations: lines.map(([value, name]) => ({
      [along]: log ? Math.log10(value) : value,
      [`${across}ref`]: "paper",
      [across]: 1,
      text: name,
      textangle: along === "x" ? -90 : 0,
      xanchor: "right",
      yanchor: along === "x" ? "top" : "bottom",
      showarrow: false,
      font: { size: 11, color: color("--soft") },
    })),
  };
};
/** Where the oracle is drawn in pictures of scores. */
const oracleLines = (suites) =>
  suites.filter((name) => data.oracle[name]).map((name) => [data.oracle[name][0], `oracle, ${name}`]);
/** Range of an axis over values and their intervals; a very wide interval may go beyond it. */
const padded = (triples) => {
  const values = triples.map(([value]) => value);
  const ends = triples.flat().filter((end) => end !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const spread = high - low || 1;
  const range = [Math.max(Math.min(...ends), low - 0.5 * spread), Math.min(Math.max(...ends), high + 0.5 * spread)];
  return [range[0] - 0.06 * spread, range[1] + 0.06 * spread];
};
