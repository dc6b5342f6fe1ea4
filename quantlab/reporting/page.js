"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const byId = new Map(figures.map((figure) => [figure.id, figure]));
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Plots: drawn when they come into sight, all of them before printing, and again in the colours of another theme.
  // Plotly itself, 4.6 MB, starts with the first of them, so that the answer and the table need not wait for it.
  const drawn = new Set();
  const start = () => {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  const merge = (base, more) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(more)) {
      const both = value && out[key] && typeof value === "object" && typeof out[key] === "object" && !Array.isArray(value);
      out[key] = both ? merge(out[key], value) : value;
    }
    return out;
  };
  const layout = (figure) => {
    const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line"), page = colour("--page");
    const axis = {
      gridcolor: line, linecolor: soft, zerolinecolor: line, tickcolor: soft, automargin: true, ticks: "outside", ticklen: 4,
      tickfont: { size: 12 }, title: { font: { size: 13 }, standoff: 10 },
    };
    const base = {
      height: figure.height, margin: { l: 56, r: 16, t: 12, b: 48 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      xaxis: axis, yaxis: axis, hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      hoverlabel: { bgcolor: page, bordercolor: soft, font: { color: ink, size: 13 }, align: "left", namelength: -1 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
    };
    const own = Object.keys(figure.layout).filter((name) => /^[xy]axis\d+$/.test(name));
    return merge({ ...base, ...Object.fromEntries(own.map((name) => [name, axis])) }, figure.layout);
  };
  const options = {
    responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const draw = (id) => {
    const figure = byId.get(id);
    drawn.add(id);
    if (!window.Plotly) start();
    return Plotly.react(id, structuredClone(figure.data), layout(figure), options);
  };
  const plots = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target.id)) draw(entry.target.id);
    }
  }, { rootMargin: "400px" });
  plots.forEach((plot) => seen.observe(plot));

  // The theme: the system's, until somebody chooses.
  const toggle = document.getElementById("theme");
  const themed = () => {
    toggle.textContent = isDark() ? "Light theme" : "Dark theme";
    toggle.setAttribute("aria-pressed", String(root.dataset.theme !== undefined));
    [...drawn].forEach(draw);
  };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  dark.addEventListener("change", themed);
  themed();

  // Printing: on white, everything drawn and nothing folded.
  let before;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, closed: [...document.querySelectorAll("details:not([open])")] };
    before.closed.forEach((details) => { details.open = true; });
    root.dataset.theme = "light";
    plots.forEach((plot) => {
      draw(plot.id);
      Plotly.relayout(plot.id, { width: 660 });
    });
  });
  addEventListener("afterprint", () => {
    before.closed.forEach((details) => { details.open = false; });
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    themed();
  });

  // The table: sorted by a click or a key on its heads, what is empty last; filtered by words.
  const table = document.getElementById("table"), body = table.tBodies[0], rows = [...body.rows];
  const value = (row, index) => {
    const text = row.cells[index].dataset.value;
    return text === "" || text === "nan" ? null : text;
  };
  const order = (index, numeric, sign) => (a, b) => {
    const [x, y] = [value(a, index), value(b, index)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
  };
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const values = rows.map((row) => value(row, index)).filter((text) => text !== null);
      const numeric = values.every((text) => Number.isFinite(Number(text)));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.toSorted(order(index, numeric, sign)));
    });
  });
  const filter = document.getElementById("filter"), shown = document.getElementById("shown");
  const count = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    shown.textContent = words.length ? `${left} of ${rows.length} trials` : `${rows.length} trials`;
  };
  filter.addEventListener("input", count);
  count();

  // Data: what a plot or the table shows, as a file made here.
  const quoted = (cell) => {
    const text = cell === null ? "" : String(cell);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const save = (name, { columns, rows: cells }) => {
    const text = [columns, ...cells].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const button of document.querySelectorAll("[data-csv]")) {
    button.addEventListener("click", () => save(button.dataset.csv, byId.get(button.dataset.csv).table));
  }

  // Commands: copied, also where a page from a file may not use the clipboard.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      await copy(button.parentElement.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
