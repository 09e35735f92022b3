// The agents that the reader chose, compared: distributions of the delay, rate ratios, runs over time.

const MOST = 6;
const slots = new Array(MOST).fill(null); // colour and dash -> entry
const comparable = [...new Set([...data.agents.map(({ id }) => id), ...data.series.map(({ name }) => name)])];
const style = (name) => {
  const slot = slots.indexOf(name);
  return { color: color(`--c${slot}`), dash: DASHES[slot], width: 2 };
};
const chooser = one("#choices");
for (const name of comparable) {
  const input = element("input", { type: "checkbox", value: name });
  chooser.append(element("label", {}, input, " ", element("span", { class: "line" }), name));
}
const showChoice = () => {
  const full = slots.every((slot) => slot !== null);
  for (const input of all("input", chooser)) {
    const slot = slots.indexOf(input.value);
    input.checked = slot >= 0;
    input.disabled = full && slot < 0;
    one(".line", input.parentElement).innerHTML =
      slot < 0
        ? ""
        : `<svg width="28" height="10" aria-hidden="true"><line x2="28" y1="5" y2="5" stroke="var(--c${slot})"
          stroke-width="2.5" stroke-dasharray="${DASH_ARRAYS[slot]}"/></svg>`;
  }
  for (const table of all("#heat table")) table.hidden = !slots.includes(table.dataset.agent);
  profiles();
  curves();
  runs();
};
chooser.addEventListener("change", ({ target }) => {
  if (target.checked) slots[slots.indexOf(null)] = target.value;
  else slots[slots.indexOf(target.value)] = null;
  showChoice();
});
const chosen = (names) => slots.filter((name) => name !== null && names.includes(name));

const profiles = () => {
  const there = data.agents.filter(({ profiles }) => profiles[suite()]);
  const shown = chosen(there.map(({ id }) => id)).map((name) => there.find(({ id }) => id === name));
  const band = (agent) => {
    const [, low, high] = agent.profiles[suite()];
    return {
      type: "scatter",
      mode: "lines",
      x: [...data.thresholds, ...[...data.thresholds].reverse()],
      y: [...high, ...[...low].reverse()].map((share) => 100 * share),
      fill: "toself",
      fillcolor: faded(style(agent.id).color, 0.15),
      line: { width: 0 },
      hoverinfo: "skip",
    };
  };
  const line = (agent) => ({
    type: "scatter",
    mode: "lines",
    name: agent.id,
    line: style(agent.id),
    x: data.thresholds,
    y: agent.profiles[suite()][0].map((share) => 100 * share),
    hovertemplate: `<b>${agent.id}</b><br>%{y:.3~g} % above %{x}<extra></extra>`,
  });
  const some = data.thresholds.filter((score) => score % 20 === 0);
  draw(
    "plot-profile",
    [...shown.map(band), ...shown.map(line)],
    { xaxis: axis("normalised score"), yaxis: axis("episodes above (%)", { range: [-2, 102] }) },
    `Performance profiles on the suite ${suite()} of ${shown.map(({ id }) => id).join(", ")}.`,
    {
      title: "Share of the episodes above a score, %",
      head: ["agent", ...some.map(String)],
      rows: shown.map(({ id, profiles }) => [
        id,
        ...some.map((score) => 100 * profiles[suite()][0][data.thresholds.indexOf(score)]),
      ]),
    },
  );
};

const curveSelect = one("#curve");
for (const name of Object.keys(data.suites)) {
  const options = Object.keys(data.curves)
    .filter((key) => key.startsWith(`${name}/`))
    .map((key) => element("option", { value: key }, key.slice(name.length + 1)));
  if (options.length) curveSelect.append(element("optgroup", { label: name }, ...options));
}
const paper = [...curveSelect.options].find((option) => option.textContent === "l4s-llm-testbed");
if (paper) curveSelect.value = paper.value;
const curves = () => {
  const found = data.curves[curveSelect.value] || {};
  const tail = one("#tail").value === "tail";
  for (const cls of ["L", "C"]) {
    const names = chosen(Object.keys(found).filter((name) => found[name][cls])); // some let no packet through
    const range = names.flatMap((name) => found[name][cls]).map(atLeast);
    const queue = cls === "L" ? "L4S queue" : "Classic queue";
    draw(
      `plot-cdf-${cls}`,
      names.map((name) => ({
        type: "scatter",
        mode: "lines",
        name,
        line: style(name),
        x: found[name][cls].map(atLeast),
        y: data.quantiles.map((q) => (tail ? (q < 1 ? 100 * (1 - q) : null) : 100 * q)),
        hovertemplate: `<b>${name}</b><br>%{y:.4~g} %: %{x:.3~g} ms<extra></extra>`,
      })),
      {
        xaxis: logAxis("queue delay (ms)", range.length ? range : [1]),
        margin: { l: 58, r: 14, t: 10, b: 48 },
        yaxis: tail ? logAxis("packets above (%)", [0.01, 100]) : axis("packets below (%)", { range: [0, 101] }),
      },
      `Distribution of the delay of the ${queue} on ${curveSelect.value} for ${names.join(", ")}.`,
      {
        title: `${queue}: delay in ms at quantiles`,
        head: [queue, ...[0.1, 0.5, 0.9, 0.95, 0.99, 0.999].map((q) => `p${100 * q}`), "max"],
        rows: names.map((name) => [
          name,
          ...[0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1].map((q) => found[name][cls][data.quantiles.indexOf(q)] ?? null),
        ]),
      },
    );
  }
};
curveSelect.addEventListener("change", () => curves());
one("#tail").addEventListener("change", () => curves());

const scenarioSelect = one("#scenario");
for (const name of new Set(data.series.map(({ scenario }) => scenario)))
  scenarioSelect.append(element("option", {}, name));
one("#series-part").previousElementSibling.hidden = one("#series-part").hidden = !data.series.length;
const mean = (values) => {
  const good = values.filter((value) => value !== null);
  return good.length ? good.reduce((a, b) => a + b, 0) / good.length : null;
};
const runs = () => {
  const there = data.series.filter(({ scenario }) => scenario === scenarioSelect.value);
  const names = chosen(there.map(({ name }) => name));
  const shown = names.map((name) => there.find((each) => each.name === name));
  if (there.length)
    one("#series-note").textContent =
      `One run, seed ${there[0].seed}, in steps of ${there[0].step_ms} ms, warm-up included: mean delay of the ` +
      "packets that left, packets marked or dropped, goodput of all flows of the class. " +
      (names.length < slots.filter(Boolean).length ? "Not all chosen agents have a run on this scenario." : "");
  const panels = [
    ["delay, ms (logarithmic)", (s, cls) => s.delay_ms[cls].map((ms) => (ms === null ? null : atLeast(ms)))],
    ["marks and drops a second", (s, cls) => s.marks_per_s[cls].map((marks, k) => marks + s.drops_per_s[cls][k])],
    ["goodput, Mbit/s", (s, cls) => s.goodput_mbps[cls]],
  ];
  for (const cls of ["L", "C"]) {
    const queue = cls === "L" ? "L4S queue" : "Classic queue";
    const layout = {
      margin: { l: 48, r: 14, t: 8, b: 48 },
      xaxis: axis("time (s)", { anchor: "y3" }),
      annotations: [],
    };
    panels.forEach(([name], k) => {
      const top = 1 - k / 3 - 0.06;
      const domain = [1 - (k + 1) / 3, top];
      if (k) layout[`yaxis${k + 1}`] = axis("", { domain, rangemode: "tozero", nticks: 5 });
      else layout.yaxis = logAxis("", [1, ...shown.flatMap((s) => panels[0][1](s, cls))], { domain }, true);
      layout.annotations.push({
        x: 0,
        xref: "paper",
        xanchor: "left",
        y: top,
        yref: "paper",
        yanchor: "bottom",
        showarrow: false,
        text: name,
      });
    });
    const traces = panels.flatMap(([, get], k) =>
      shown.map((s) => ({
        type: "scatter",
        mode: "lines",
        name: s.name,
        line: { ...style(s.name), width: 1.3 },
        yaxis: k ? `y${k + 1}` : "y",
        x: s.goodput_mbps[cls].map((_, step) => Number(((step + 0.5) * s.step_ms * 1e-3).toPrecision(6))),
        y: get(s, cls),
        hovertemplate: `<b>${s.name}</b> %{x} s: %{y:.3~g}<extra></extra>`,
      })),
    );
    draw(
      `plot-series-${cls}`,
      traces,
      layout,
      `Time series of the ${queue} on ${scenarioSelect.value} for ${names.join(", ")}: delay, signals, goodput.`,
      {
        title: `${queue}: means and largest steps`,
        head: [queue, "mean delay, ms", "largest, ms", "marks and drops a second", "goodput, Mbit/s"],
        rows: shown.map((s) => [
          s.name,
          mean(panels[0][1](s, cls)),
          Math.max(...s.delay_ms[cls]) || null, // a step without a delay is null
          mean(panels[1][1](s, cls)),
          mean(panels[2][1](s, cls)),
        ]),
      },
    );
  }
};
scenarioSelect.addEventListener("change", () => runs());
