"use strict";
const CHARTS = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2563a8", "#d1622b", "#2f8a4c", "#8b4fb0", "#b03a48", "#6b7280", "#0f8b8d", "#b58900"];
const AXES = { iter: "iteration", epoch: "epoch", hours: "hours at work" };
const runs = [...new Set(CHARTS.flatMap((chart) => chart.lines.map((line) => line.run)))];
const byId = (id) => document.getElementById(id);

// An exponential moving average, corrected for its start as in Adam (Kingma and Ba, 2015), as steps towards each value:
// a constant stays what it is to the last digit (its axis has no digits of noise to label). Gaps stay gaps.
function smoothed(values, weight) {
  let mean = 0, left = 1;
  return values.map((value) => {
    if (value === null) return null;
    left *= weight;
    mean += ((1 - weight) / (1 - left)) * (value - mean);
    return mean;
  });
}

function settings() {
  return { smoothing: Number(byId("smoothing").value), axis: byId("axis").value, log: byId("log").checked };
}

function traces(chart, { smoothing, axis }) {
  return chart.lines.flatMap((line) => {
    const kinds = [...new Set(chart.lines.map((other) => other.kind))];
    const colour = COLOURS[(runs.length > 1 ? runs.indexOf(line.run) : kinds.indexOf(line.kind)) % COLOURS.length];
    const name = runs.length > 1 ? `${line.run}, ${line.kind}` : line.kind;
    const dash = runs.length > 1 && kinds.indexOf(line.kind) > 0 ? "dot" : "solid";
    if (line.stacked) {
      const fill = COLOURS[kinds.indexOf(line.kind)];
      return [{ x: line[axis], y: line.y, type: "scatter", mode: "lines", name: line.kind, stackgroup: "all", line: { color: fill, width: 1 } }];
    }
    const few = line.y.length < 30;
    const base = { x: line[axis], type: "scatter", mode: few ? "lines+markers" : "lines", name, legendgroup: name };
    if (smoothing === 0) return [{ ...base, y: line.y, line: { color: colour, dash, width: 1.6 } }];
    return [
      { ...base, y: line.y, mode: "lines", opacity: 0.25, showlegend: false, hoverinfo: "skip", line: { color: colour, width: 1 } },
      { ...base, y: smoothed(line.y, smoothing), mode: "lines", line: { color: colour, dash, width: 1.8 } },
    ];
  });
}

function layout(chart, { axis, log }) {
  return {
    title: { text: chart.title, font: { size: 14 }, x: 0, xanchor: "left" },
    // Margins are fixed: left to Plotly, the width of the labels and that of the axis can chase one another for ever.
    margin: { l: 68, r: 12, t: 36, b: 80, autoexpand: false },
    xaxis: { title: { text: AXES[axis], standoff: 4 } },
    yaxis: { type: log ? "log" : "linear" },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    hovermode: "closest",
  };
}

function draw(chart) {
  const now = settings();
  return Plotly.react(chart.place, traces(chart, now), layout(chart, now), { displaylogo: false, responsive: true });
}

// Only what can be seen is drawn: a run may have a chart for each of a thousand weights.
async function drawAll() {
  const now = settings();
  byId("shown").textContent = now.smoothing;
  const seen = CHARTS.filter((chart) => chart.place.closest("details").open);
  await Promise.all(seen.map(draw));
  history.replaceState(null, "", `#smoothing=${now.smoothing}&axis=${now.axis}&log=${now.log ? 1 : 0}`);
  document.body.dataset.drawn = seen.length;
}

function build() {
  const sections = new Map();
  for (const chart of CHARTS) {
    if (!sections.has(chart.section)) {
      const details = document.createElement("details");
      const summary = document.createElement("summary");
      const grid = document.createElement("div");
      details.open = chart.section !== "Weights and gradients";
      summary.textContent = chart.section;
      grid.className = "grid";
      details.append(summary, grid);
      details.addEventListener("toggle", drawAll);
      byId("charts").append(details);
      sections.set(chart.section, grid);
    }
    chart.place = document.createElement("div");
    chart.place.className = "chart";
    chart.place.dataset.title = chart.title;
    sections.get(chart.section).append(chart.place);
  }
}

const asked = new URLSearchParams(location.hash.slice(1));
if (asked.has("smoothing")) byId("smoothing").value = asked.get("smoothing");
if (asked.get("axis") in AXES) byId("axis").value = asked.get("axis");
byId("log").checked = asked.get("log") === "1";
byId("controls").addEventListener("input", drawAll);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
build();
drawAll();
