(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const axis = {
    labelColor: "var(--quiet)", titleColor: "var(--quiet)", gridColor: "var(--grid)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 160,
  };
  const config = {
    aria: false, background: null, font: "system-ui, sans-serif", view: { stroke: null }, axis,
    legend: {
      orient: "bottom", direction: "horizontal", columns: { expr: "width < 480 ? 2 : 4" }, labelColor: "var(--text)", titleColor: "var(--quiet)",
      labelFontSize: 12, labelLimit: 180, symbolStrokeWidth: 2,
    },
    range: { category: ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)"] },
    rule: { color: "var(--quiet)" }, text: { color: "var(--text)" }, tick: { color: "var(--quiet)" },
  };

  function rows(chart) {
    const cell = (value, at) => (chart.texts[at] && value !== null ? chart.words[value] : value);
    return chart.rows.map((row) => Object.fromEntries(chart.columns.map((column, at) => [column, cell(row[at], at)])));
  }

  function draw(place) {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const chart = data.charts[Number(place.dataset.chart)];
    const spec = structuredClone(data.specs[chart.spec]);
    spec.data = { values: rows(chart) };
    window.vegaEmbed(place, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, config,
      tooltip: { disableDefaultStyle: true }, logLevel: 1,
    }).then(
      () => place.classList.add("drawn"),
      (error) => { place.textContent = `This chart could not be drawn: ${error.message}`; },
    );
  }

  const places = [...document.querySelectorAll(".chart")];
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "300px" },
  );
  places.forEach((place) => seen.observe(place));
  // Paper and machines cannot scroll: page.html#all, like printing, opens and draws everything at once.
  const all = () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    places.forEach(draw);
  };
  window.addEventListener("beforeprint", all);
  if (window.location.hash === "#all") all();

  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const name = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  button.hidden = false;
  name();
})();
