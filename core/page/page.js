"use strict";
// Values of the lines of a chart at the place of the pointer, below the chart.
for (const svg of document.querySelectorAll("svg.curves")) {
  const [label, lines] = JSON.parse(svg.dataset.lines), output = svg.parentElement.querySelector("output");
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "path");
  mark.setAttribute("class", "pointer");
  svg.append(mark);
  const show = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const near = lines.map(([name, points]) => [name, points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
    if (!near.length) return;
    const first = near.reduce((a, b) => Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a)[1];
    mark.setAttribute("d", `M${first[0]} 10V${svg.viewBox.baseVal.height - 38}`);
    output.textContent = near.map(([name, p]) => `${name} ${p[2]}`.trim() + (p[1] === first[1] ? "" : ` (at ${p[1]})`)).join(", ") + ` at ${first[1]} ${label}`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
}
