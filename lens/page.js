"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main"), tip = document.getElementById("tip");

function make(parent, tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
}
function floats(packed) {
  const bytes = Uint8Array.from(atob(packed.base64), c => c.charCodeAt(0));
  if (packed.kind === "uint8") return Array.from(bytes, b => b / 255 * packed.most);
  return new Float32Array(bytes.buffer);
}
function shown(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  return Math.abs(x) >= 5e-4 || x === 0 ? x.toFixed(3) : x.toExponential(1);
}
function visible(name) { return name.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅"; }
// White to a colour for 0 to 1; blue and red for signs.
function colour(share, negative) {
  const s = Math.max(0, Math.min(1, share)), to = negative ? [47, 109, 179] : [209, 73, 91];
  return `rgb(${to.map(c => Math.round(255 + (c - 255) * s)).join(",")})`;
}
function tell(event, text) {
  tip.textContent = text;
  tip.style.display = "block";
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
}
function hush() { tip.style.display = "none"; }
function limits(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (!Number.isNaN(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  return [low, high];
}

// --- a map of rows and columns; `linked` maps show the same cell together ---
function drawMap(parent, values, rows, columns, over, width, most = 26) {
  const cell = Math.max(3, Math.min(most, Math.floor(width / columns)));
  const canvas = make(parent, "canvas");
  canvas.width = columns * cell; canvas.height = rows * cell;
  const [low, high] = limits(values), top = Math.max(Math.abs(low), Math.abs(high), 1e-12);
  const paint = at => {
    const pen = canvas.getContext("2d");
    for (let i = 0; i < rows * columns; i++) {
      const v = values[i];
      pen.fillStyle = Number.isNaN(v) ? "#eee" : colour(Math.abs(v) / top, v < 0);
      pen.fillRect(i % columns * cell, Math.floor(i / columns) * cell, cell, cell);
    }
    if (at >= 0) {
      pen.strokeStyle = "#222"; pen.lineWidth = 1.5;
      pen.strokeRect(at % columns * cell + 1, Math.floor(at / columns) * cell + 1, cell - 2, cell - 2);
    }
  };
  const where = event => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left) / box.width * columns);
    const r = Math.floor((event.clientY - box.top) / box.height * rows);
    return r >= 0 && r < rows && c >= 0 && c < columns ? r * columns + c : -1;
  };
  canvas.addEventListener("pointermove", event => { const at = where(event); if (at >= 0) over(event, at); });
  canvas.addEventListener("pointerdown", event => { const at = where(event); if (at >= 0) over(event, at); });
  canvas.addEventListener("pointerleave", hush);
  paint(-1);
  return paint;
}

function showHeads(section, panels) {
  const row = make(section, "div", undefined, "row"), paints = [];
  const values = panels.map(p => floats(p.values));
  const over = (event, at) => {
    paints.forEach(paint => paint(at));
    const columns = panels[0].shape[1], lines = panels.map((p, i) => `${p.title}: ${shown(values[i][at])}`);
    const names = panels[0].columns;
    tell(event, [`head ${Math.floor(at / columns)}.${names ? names[at % columns] : at % columns}`, ...lines].join("\n"));
  };
  panels.forEach((panel, i) => {
    const figure = make(row, "figure");
    figure.style.maxWidth = "260px";
    make(figure, "h3", panel.title + (panel.unit ? ` (${panel.unit})` : ""));
    paints.push(drawMap(figure, values[i], ...panel.shape, over, 240));
    make(figure, "p", panel.caption, "caption");
  });
}

function showGrid(section, panel) {
  const values = floats(panel.values);
  const columns = panel.shape[1];
  const paint = drawMap(make(section, "div"), values, ...panel.shape, (event, at) => {
    paint(at);
    tell(event, `layer ${panel.rows[Math.floor(at / columns)]}, ${visible(panel.columns[at % columns])}\n${panel.unit}: ${shown(values[at])}`);
  }, Math.min(1100, main.clientWidth));
  make(section, "p", panel.caption, "caption");
}

function showSquare(section, panel) {
  const n = panel.size, marked = new Set(panel.marks.map(m => m.join()));
  const values = floats(panel.values);
  const known = (r, c) => marked.has([Math.min(r, c), Math.max(r, c)].join());
  const paint = drawMap(make(section, "div"), values, n, n, (event, at) => {
    const r = Math.floor(at / n), c = at % n;
    paint(at);
    tell(event, `residues ${Math.min(r, c) + 1} and ${Math.max(r, c) + 1}` + (panel.marks.length ? known(r, c) ? ": in contact" : ": not in contact" : ""));
  }, Math.min(640, main.clientWidth));
  make(section, "p", panel.caption + ". Darker ranks higher; the lowest nine tenths are white.", "caption");
}

function showTokens(section, panel) {
  const n = panel.names.length, places = panel.places.length;
  const heads = Object.keys(panel.heads), scopes = { [panel.title]: floats(panel.weights) };
  let scope = panel.title, at = places - 1;
  if (heads.length) {
    const label = make(section, "label", "Weights of ");
    const choice = make(label, "select");
    for (const name of [panel.title, ...heads]) make(choice, "option", name);
    choice.addEventListener("change", () => {
      scope = choice.value;
      if (!scopes[scope]) scopes[scope] = floats(panel.heads[scope]);
      refresh();
    });
  }
  const status = make(section, "p", "", "status"), effects = floats(panel.effects);
  const weightsAt = () => scopes[scope].slice(at * n, at * n + n), effectsAt = () => effects.slice(at * n, at * n + n);
  const both = t => `${visible(panel.names[t])} (${t}): weight ${shown(weightsAt()[t])}, effect ${shown(effectsAt()[t])} ${panel.unit}`;
  const boxes = make(section, "div", undefined, "strips");
  let refresh;
  if (panel.grid) {
    const patches = panel.grid[0] * panel.grid[1], start = n - patches;
    refresh = () => {
      boxes.replaceChildren();
      const paints = [];
      if (panel.image) {
        const figure = make(boxes, "figure");
        make(figure, "h3", "Input");
        const image = make(figure, "img");
        image.src = panel.image; image.alt = "the image as the model saw it"; image.style.width = "min(380px, 100%)";
        image.style.imageRendering = "pixelated";
      }
      [["Read (weights)", weightsAt()], [`Used (effect of hiding, ${panel.unit})`, effectsAt()]].forEach(([title, values]) => {
        const figure = make(boxes, "figure");
        make(figure, "h3", title);
        paints.push(drawMap(figure, values.slice(start), ...panel.grid, (event, cell) => {
          paints.forEach(paint => paint(cell));
          tell(event, both(start + cell));
        }, Math.min(380, main.clientWidth), 120));
      });
      const rest = panel.names.slice(0, start).map((_, t) => both(t));
      status.textContent = rest.length ? `Besides the patches: ${rest.join("; ")}` : "";
    };
  } else {
    const strips = ["Read (weights)", `Used (effect of hiding, ${panel.unit})`].map(title => {
      const figure = make(boxes, "figure");
      figure.style.margin = 0;
      make(figure, "h3", title);
      const strip = make(figure, "div", undefined, "strip");
      return panel.names.map((name, t) => {
        const chip = make(strip, "span", visible(name));
        chip.addEventListener("pointerenter", event => { if (places > 1) { at = t; refresh(); } tell(event, both(t)); });
        chip.addEventListener("pointerleave", hush);
        return chip;
      });
    });
    refresh = () => {
      [weightsAt(), effectsAt()].forEach((values, s) => {
        const most = Math.max(limits(values.filter(v => !Number.isNaN(v)))[1], 1e-12);
        strips[s].forEach((chip, t) => {
          chip.style.background = Number.isNaN(values[t]) ? "#f4f4f4" : colour(values[t] / most, false);
          chip.classList.toggle("at", places > 1 && t === at);
        });
      });
      const order = [...effectsAt().keys()].filter(t => effectsAt()[t] > 0).sort((a, b) => effectsAt()[b] - effectsAt()[a]);
      const top = order.slice(0, 3).map(both).join("; ");
      status.textContent = `Place ${at}, ${visible(panel.places[at])}. Most used: ${top || "nothing"}`;
    };
  }
  refresh();
}

document.querySelectorAll("section[data-panel]").forEach(section => {
  const panel = report.panels[Number(section.dataset.panel)];
  if (panel.kind === "tokens") showTokens(section, panel);
  if (panel.kind === "grid") showGrid(section, panel);
  if (panel.kind === "square") showSquare(section, panel);
});
const section = document.querySelector("section.heads");
if (section) showHeads(section, report.panels.filter(panel => panel.kind === "heads"));
document.body.dataset.ready = "true";
