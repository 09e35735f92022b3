// Delay against utilisation, generalisation, cost.

const title = (select) => one(select).selectedOptions[0].textContent;

const LEAST = 80; // per cent of utilisation
/** Values, and the ends of their intervals as far as they are less than twice beyond. */
const nearby = (triples) => {
  const values = triples.map(([value]) => value);
  const [low, high] = [Math.min(...values) / 2, Math.max(...values) * 2];
  return [...values, ...triples.flat().filter((end) => end > low && end < high)];
};
const tradeOff = () => {
  const name = one("#delay").value;
  const points = data.agents.flatMap((agent) => {
    const metrics = agent.metrics[suite()];
    if (!metrics || !metrics[name] || !metrics.utilisation || metrics[name][0] === null) return [];
    return [
      {
        agent,
        x: metrics[name].map((each) => (each === null ? null : atLeast(each))),
        y: interval(metrics.utilisation, 100),
      },
    ];
  });
  const named = ({ agent, y }) => `${agent.id} (${text(y[0], 3)} %)`;
  const low = points.filter(({ y }) => y[0] < LEAST);
  const zoomed = one("#zoom").checked && low.length > 0 && low.length < points.length;
  const seen = zoomed ? points.filter(({ y }) => y[0] >= LEAST) : points;
  const drawn = new Set(points.map(({ agent }) => agent.id));
  const without = data.agents.filter(({ id, metrics }) => metrics[suite()] && !drawn.has(id));
  one("#left-out").textContent =
    (zoomed ? `Left out, with less utilisation than ${LEAST} %: ${low.map(named).join(", ")}. ` : "") +
    (without.length ? `Without this delay in some scenarios: ${without.map(({ id }) => id).join(", ")}.` : "");
  if (!points.length) return;
  const yaxis = axis("utilisation (%)", { range: padded(seen.map(({ y }) => y)) });
  scatter(
    "plot-trade-off",
    seen,
    logAxis("queue delay (ms)", nearby(seen.map(({ x }) => x))),
    yaxis,
    {
      hover: (x, y) => `delay ${withInterval(x, " ms")}<br>utilisation ${withInterval(y, " %")}`,
      alt: `Scatter of ${seen.length} agents: delay of the ${title("#delay")}, against utilisation, suite ${suite()}.`,
      table: {
        title: "Delay and utilisation",
        head: ["agent", "kind", "delay, ms", "low", "high", "utilisation, %", "low", "high"],
        rows: points.map(({ agent, x, y }) => [agent.id, data.kinds[agent.kind], ...x, ...y]),
      },
    },
  );
};
for (const name of ["#delay", "#zoom"]) one(name).addEventListener("change", () => tradeOff());

const gap = () => {
  const agents = data.agents.filter(({ scores }) => scores.test && scores.shift);
  const part = one("#gap");
  part.hidden = !agents.length;
  if (!agents.length) return;
  const up = [...agents].reverse();
  const shown = agents.flatMap(({ scores }) => [scores.test, scores.shift]);
  const oracle = oracleLines(["test", "shift"]);
  one("#plot-gap").style.height = `${90 + 34 * up.length}px`;
  const narrow = one("#plot-gap").clientWidth < 560;
  const trace = (of, shape, paint, shift) => ({
    type: "scatter",
    mode: "markers",
    name: of,
    x: up.map(({ scores }) => scores[of][0]),
    y: up.map((_, k) => k + shift),
    error_x: { ...spread(up.map(({ scores }) => scores[of])), color: faded(color(paint), 0.6) },
    marker: { symbol: shape, size: 10, color: color(paint) },
    customdata: up.map(({ id, scores }) => [id, withInterval(scores[of], "")]),
    hovertemplate: `<b>%{customdata[0]}</b><br>${of} %{customdata[1]}<extra></extra>`,
  });
  const links = up.map(({ scores }, k) => ({
    type: "line",
    x0: scores.test[0],
    x1: scores.shift[0],
    y0: k + 0.12,
    y1: k - 0.12,
    line: { color: color("--line"), width: 2 },
    layer: "below",
  }));
  /* On a narrow screen the names stand over the points, not beside the axis. */
  const over = up.map(({ id }, k) => ({
    x: 0,
    xref: "paper",
    y: k + 0.22,
    text: id,
    xanchor: "left",
    yanchor: "bottom",
    showarrow: false,
    font: { size: 11 },
  }));
  draw(
    "plot-gap",
    [trace("test", "circle", "--c0", 0.12), trace("shift", "diamond-open", "--c1", -0.12)],
    {
      xaxis: axis("normalised score", { range: padded([...shown, ...oracle.map(([score]) => [score])]) }),
      yaxis: axis("", {
        tickvals: up.map((_, k) => k),
        ticktext: up.map(({ id }) => id),
        showticklabels: !narrow,
        automargin: true,
        range: [-0.7, up.length - (narrow ? 0 : 0.3)],
      }),
      shapes: [...links, ...dotted("x", oracle).shapes],
      showlegend: true,
      annotations: [...(narrow ? over : []), ...dotted("x", oracle).annotations],
      margin: { l: narrow ? 10 : 58, r: 14, t: 30, b: 48 },
    },
    `Normalised scores of ${agents.length} agents on the suites test and shift.`,
    {
      title: "Scores on test and shift",
      head: ["agent", "test", "low", "high", "shift", "low", "high"],
      rows: agents.map(({ id, scores }) => [id, ...scores.test, ...scores.shift]),
    },
  );
};

const cost = () => {
  const name = one("#price").value;
  const points = data.agents
    .filter((agent) => agent[name] > 0 && agent.scores[suite()])
    .map((agent) => ({ agent, x: [agent[name], null, null], y: agent.scores[suite()] }));
  const lacking = data.agents.length - points.length;
  const latency = name === "latency_us";
  one("#cost-note").textContent =
    (latency
      ? "Time of one decision for one environment, in Python. Vertical lines: the time that a packet of 1500 bytes " +
        "takes on a link of that rate. "
      : "") +
    (lacking
      ? `${lacking} agents without this cost are left out: native disciplines decide inside the simulator, ` +
        "rules have no parameters. "
      : "") +
    `Scores are of the suite ${suite()}.`;
  one("#plot-cost").hidden = !points.length;
  if (!points.length) return;
  const rates = latency ? [8, 40, 200] : [];
  const xaxis = logAxis(latency ? "time of one decision (µs)" : "parameters", [
    ...points.map(({ x }) => x[0]),
    ...rates.map((rate) => 12000 / rate),
  ]);
  const oracle = oracleLines([suite()]);
  const packets = rates.map((rate) => [12000 / rate, `${rate} Mbit/s`]);
  const lines = [dotted("x", packets, true), dotted("y", oracle)];
  const range = padded([...points.map(({ y }) => y), ...oracle.map(([score]) => [score])]);
  scatter("plot-cost", points, xaxis, axis("normalised score", { range }), {
    hover: (x, y) => `${text(x[0], 3)}${latency ? " µs" : " parameters"}<br>score ${withInterval(y, "")}`,
    shapes: lines.flatMap(({ shapes }) => shapes),
    annotations: lines.flatMap(({ annotations }) => annotations),
    alt: `Scatter of ${points.length} agents: ${title("#price")} against the normalised score, suite ${suite()}.`,
    table: {
      title: "Cost and score",
      head: ["agent", latency ? "decision, µs" : "parameters", "score", "low", "high"],
      rows: points.map(({ agent, x, y }) => [agent.id, x[0], ...y]),
    },
  });
};
one("#price").addEventListener("change", () => cost());
