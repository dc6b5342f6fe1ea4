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
    return Plotly.react(id, structuredClone(figure.data), layout(figure), options).then((plot) => {
      if (!figure.labelled) return;
      label(plot, figure);
      if (plot.labelling) return;
      plot.labelling = true;
      plot.on("plotly_relayout", (change) => { if (!("annotations" in change)) label(plot, figure); });
    });
  };

  // Names beside points: each at the first of these places that is free, the front's first; a name without a free
  // place is left out (hovering shows it). Places are in pixels from the point: right, left, above, below, further.
  const places = [];
  for (const far of [0, 18, 36, 54, 76, 100, 128, 160]) {
    for (const [x, y] of [[1, 0], [-1, 0], [0.6, -1], [-0.6, -1], [0.6, 1], [-0.6, 1]]) places.push([x, y, far]);
  }
  const pen = document.createElement("canvas").getContext("2d");
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const label = (plot, figure) => {
    const { xaxis, yaxis, width } = plot._fullLayout;
    const font = { family: getComputedStyle(document.body).fontFamily, size: width < 500 ? 10 : 12 };
    pen.font = `${font.size}px ${font.family}`;
    const points = figure.data.flatMap((trace, order) => trace.text.map((text, i) => (
      { text, order, x: xaxis.d2p(trace.x[i]), y: yaxis.d2p(trace.y[i]), at: [xaxis.d2r(trace.x[i]), yaxis.d2r(trace.y[i])] }
    ))).filter(({ x, y }) => x >= 0 && x <= xaxis._length && y >= 0 && y <= yaxis._length);
    const taken = points.map(({ x, y }) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 }));
    const annotations = [...(figure.layout.annotations ?? [])];
    const cut = (text, most) => {
      let shown = text;
      while (pen.measureText(shown).width > most) shown = `${shown.slice(0, -2).trimEnd()}…`;
      return shown;
    };
    for (const point of points.toSorted((a, b) => a.order - b.order || a.y - b.y)) {
      const text = cut(point.text, 0.45 * xaxis._length), half = pen.measureText(text).width / 2 + 3;
      const free = places.map(([x, y, far]) => {
        const ax = x * (half + 10 + far * 0.5), ay = y * (14 + far) + (y === 0 && far ? far * 0.35 : 0);
        const middle = [point.x + ax, point.y + ay];
        return { ax, ay, left: middle[0] - half, right: middle[0] + half, top: middle[1] - 8, bottom: middle[1] + 8 };
      }).find((box) => box.left >= 0 && box.right <= xaxis._length && box.top >= 0 && box.bottom <= yaxis._length
        && !taken.some((other) => overlaps(box, other)));
      if (!free) continue;
      taken.push(free);
      const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
      annotations.push({
        x: point.at[0], y: point.at[1], ax: free.ax, ay: free.ay, text: escaped, showarrow: true, arrowhead: 0, standoff: 6,
        arrowwidth: 0.7, arrowcolor: colour("--soft"), font: { ...font, color: colour("--ink") }, borderpad: 1,
      });
    }
    Plotly.relayout(plot, { annotations });
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

  // Edges: a shade where a table goes on beyond what is seen.
  const boxes = [...document.querySelectorAll(".scroll")];
  const edges = () => boxes.forEach((box) => {
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    box.classList.toggle("more-left", box.scrollLeft > 1);
  });
  boxes.forEach((box) => box.addEventListener("scroll", edges, { passive: true }));
  addEventListener("resize", edges);
  edges();

  const table = document.getElementById("table");
  if (table) {
    // The table: sorted by a click or a key on its heads, what is empty last; filtered by words.
    const body = table.tBodies[0], rows = [...body.rows];
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

    // Columns: those marked as folded are shown on request.
    const heads = [...table.tHead.rows[0].cells], chooser = document.getElementById("columns");
    const show = (index, visible) => { for (const row of table.rows) row.cells[index].hidden = !visible; };
    heads.forEach((head, index) => {
      if (index === 0) return;
      const choice = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !("folded" in head.dataset);
      box.addEventListener("change", () => { show(index, box.checked); edges(); });
      choice.append(box, ` ${head.dataset.title}`);
      chooser.append(choice);
      show(index, box.checked);
    });
    document.getElementById("chooser").hidden = false;
    edges();
  }

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
