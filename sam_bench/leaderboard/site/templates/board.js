"use strict";
// Sorts and searches the board's table, and draws the plots in the page's own colours.
(() => {
  const packed = document.getElementById("packed");
  if (packed) {  // what all models' pages have in common is in pieces.js
    const parts = JSON.parse(packed.textContent);
    packed.parentElement.innerHTML = parts.map((part) => typeof part === "number" ? pieces[part] : part).join("");
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
    const font = getComputedStyle(document.body).fontFamily;
    const axis = { domainColor: quiet, tickColor: quiet, gridColor: line, labelColor: quiet, titleColor: ink,
      titleFontWeight: "normal", titleFontSize: 13, labelFontSize: 12, titlePadding: 8 };
    return { font, background: "transparent", axis, legend: { labelColor: ink, labelFontSize: 12, symbolSize: 80 }, view: { stroke: null } };
  }

  async function draw(place, spec) {
    // A canvas is drawn faster; SVG is sharper and can be read out.
    const renderer = spec.data.values.length > 200 ? "canvas" : "svg";
    const options = { mode: "vega-lite", actions: false, renderer, ast: true, config: theme(),
      tooltip: { theme: dark.matches ? "dark" : "light" } };
    await vegaEmbed(place, spec, options);
  }

  async function dress() {
    document.documentElement.classList.toggle("dark", dark.matches);  // DataTables' own switch
    await Promise.all(plots.map(([place, spec]) => draw(place, spec)));
    performance.mark("drawn");
  }

  const plots = [...document.querySelectorAll(".plot")].map((place) =>
    [place, JSON.parse(place.querySelector("script").textContent)]);
  dark.addEventListener("change", dress);

  for (const table of document.querySelectorAll("table.board")) {
    const many = table.tBodies[0].rows.length > 100;
    const api = datatables.jQuery(table).DataTable({
      autoWidth: false,
      order: [],
      // What does not compare stays below, whatever the order.
      orderFixed: { pre: [[table.tHead.rows[0].cells.length - 1, "asc"]] },
      columnDefs: [
        { targets: ".best", orderSequence: ["desc", "asc"] },
        { targets: "_all", orderSequence: ["asc", "desc"] },
      ],
      paging: many,
      pageLength: 100,
      lengthMenu: [100, 250, { label: "all", value: -1 }],
      layout: { topStart: "search", topEnd: "info", bottomStart: many ? "pageLength" : null, bottomEnd: many ? "paging" : null },
      language: { search: "Search", info: "_START_ to _END_ of _TOTAL_ models", infoFiltered: "(of _MAX_)", infoEmpty: "no models" },
    });
    // DataTables says how the first column of the order is sorted, which is the hidden one.
    api.on("draw", () => {
      for (const header of table.tHead.rows[0].cells) header.removeAttribute("aria-sort");
      for (const [column, way] of api.order())
        api.column(column).header().setAttribute("aria-sort", way === "asc" ? "ascending" : "descending");
    });
  }
  dress();
})();
