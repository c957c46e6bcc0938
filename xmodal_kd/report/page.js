"use strict";
// Everything a page does beyond being read: readings on plots, a cursor beside the sound, points to turn.

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.dispatchEvent(new Event("theme"));
});

// ------------------------------------------------------------------ plots: the values nearest to the pointer

function readings(svg) {
  const plot = JSON.parse(svg.dataset.plot);
  const hair = document.createElementNS("http://www.w3.org/2000/svg", "path");
  hair.setAttribute("class", "crosshair");
  svg.append(hair);
  const box = document.createElement("div");
  box.className = "reading";
  box.hidden = true;
  svg.parentNode.append(box);
  const hide = () => { box.hidden = true; hair.removeAttribute("d"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * svg.viewBox.baseVal.width;
    let at = null;
    for (const line of plot.lines) for (const p of line.p) if (!at || Math.abs(p[0] - x) < Math.abs(at[0] - x)) at = p;
    if (!at) return hide();
    hair.setAttribute("d", `M${at[0]} 12V${svg.viewBox.baseVal.height - 40}`);
    const rows = [`${plot.x} ${at[2]}`];
    for (const line of plot.lines) {
      const near = line.p.reduce((a, b) => Math.abs(a[0] - at[0]) <= Math.abs(b[0] - at[0]) ? a : b);
      if (Math.abs(near[0] - at[0]) < 6) rows.push(`${line.name} ${near[3]}`);
    }
    box.replaceChildren(...rows.map((row) => Object.assign(document.createElement("div"), { textContent: row })));
    box.hidden = false;
    const left = at[0] / svg.viewBox.baseVal.width * area.width + svg.offsetLeft;
    const width = svg.parentNode.clientWidth;
    box.style.left = left < width / 2 ? `${left + 22}px` : "auto";
    box.style.right = left < width / 2 ? "auto" : `${width - left}px`;
  });
}

// ------------------------------------------------------------------ sound: one at a time, a cursor over its traces

function sounding(audio) {
  const svg = audio.closest("article").querySelector("svg.traces");
  const cursor = svg && svg.querySelector(".cursor");
  const move = () => {
    if (!cursor) return;
    cursor.setAttribute("transform", `translate(${audio.currentTime * svg.dataset.unit} 0)`);
    cursor.setAttribute("visibility", audio.currentTime > 0 && !audio.ended ? "visible" : "hidden");
    if (!audio.paused) requestAnimationFrame(move);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    move();
  });
  audio.addEventListener("seeked", move);
  audio.addEventListener("ended", move);
  if (svg) svg.addEventListener("click", (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * svg.viewBox.baseVal.width - svg.dataset.start;
    if (x >= 0) audio.currentTime = Math.min(x / svg.dataset.unit, audio.duration || 0);
  });
}

// ------------------------------------------------------------------ pictures and tables

function enlarging(image) {
  image.addEventListener("click", () => image.parentNode.classList.toggle("full"));
}

function sorting(head) {
  head.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], i = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[i].dataset.value ?? row.cells[i].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)], [p, q] = [parseFloat(x), parseFloat(y)];
      if (Number.isNaN(p) !== Number.isNaN(q)) return Number.isNaN(p) ? 1 : -1;
      return (Number.isNaN(p) ? x.localeCompare(y) : p - q) * (up ? 1 : -1);
    };
    body.append(...[...body.rows].sort(order));
  });
}

// ------------------------------------------------------------------ clouds: points drawn by hand, so that no library is needed

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function rgb(colour) {
  return (255 << 24 | colour[2] << 16 | colour[1] << 8 | colour[0]) >>> 0;
}

const VIEWS = {
  sensor: { yaw: 0, pitch: 0.42, reach: 23 }, side: { yaw: Math.PI / 2, pitch: 0.3, reach: 26 },
  above: { yaw: 0, pitch: Math.PI / 2, reach: 34 },
};

// What a reader made of the clouds of a part, kept where a part is written anew.
const kept = new Map();

function clouds(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const raw = new Int16Array(bytes(data.xyz).buffer), count = raw.length / 3;
  const xyz = Float32Array.from(raw, (v) => v * data.scale);
  const views = data.views.map((view) => ({ name: view.name, labels: bytes(view.labels) }));
  const reference = views.find((view) => view.name === data.reference);
  const canvases = [...root.querySelectorAll("canvas")], inks = data.colours.map(rgb);
  const part = root.closest("section, .part")?.id, before = kept.get(part);
  const camera = before?.camera ?? { ...VIEWS.sensor };
  let mode = before?.mode ?? "classes", turning = before?.turning ?? false, asked = false;

  function style(name) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return rgb([1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  }

  function draw(canvas, view) {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.max(1, Math.round(canvas.clientWidth * ratio)), h = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const context = canvas.getContext("2d"), image = context.createImageData(w, h);
    const pixels = new Uint32Array(image.data.buffer), depth = new Float32Array(w * h).fill(Infinity);
    const bad = style("--bad"), good = style("--good"), faint = style("--line");
    const [cy, sy, cp, sp] = [Math.cos(camera.yaw), Math.sin(camera.yaw), Math.cos(camera.pitch), Math.sin(camera.pitch)];
    const distance = camera.reach * 1.5, focal = 0.75 * w;
    for (let i = 0; i < count; i++) {
      const label = view.labels[i];
      if (label === 255) continue;
      const x = xyz[3 * i], y = xyz[3 * i + 1], z = xyz[3 * i + 2];
      const forward = x * cy + y * sy, left = y * cy - x * sy;
      const away = distance + forward * cp - z * sp, up = forward * sp + z * cp;
      if (away < 1) continue;
      const u = w / 2 - focal * left / away, v = h / 2 - focal * up / away;
      let ink = inks[label % inks.length], size = Math.max(2, Math.min(4 * ratio, Math.round(ratio * 65 / away))), near = away;
      if (mode === "errors" && reference) {
        const wanted = reference.labels[i];
        const wrong = wanted !== 255 && wanted !== label;
        ink = wanted === 255 ? faint : wrong ? bad : good;
        if (wrong) { near *= 0.97; size += 1; }
      }
      const a = Math.round(u - size / 2), b = Math.round(v - size / 2);
      for (let q = Math.max(b, 0); q < Math.min(b + size, h); q++) {
        for (let p = Math.max(a, 0); p < Math.min(a + size, w); p++) {
          if (near < depth[q * w + p]) { depth[q * w + p] = near; pixels[q * w + p] = ink; }
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  function ask() {
    if (asked || !root.isConnected) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; canvases.forEach((canvas, i) => draw(canvas, views[i])); });
  }

  function turn(dx, dy) {
    camera.yaw += dx;
    camera.pitch = Math.min(Math.PI / 2, Math.max(-0.2, camera.pitch + dy));
    ask();
  }

  function on() {
    if (!turning || !root.isConnected) return;
    if (!document.hidden) turn(0.006, 0);
    requestAnimationFrame(on);
  }

  function show() {
    for (const other of root.querySelectorAll("[data-mode]")) other.setAttribute("aria-pressed", other.dataset.mode === mode);
    root.querySelector("[data-turn]").setAttribute("aria-pressed", turning);
    root.querySelector(".legend.classes").hidden = mode === "errors";
    root.querySelector(".legend.errors").hidden = mode !== "errors";
    kept.set(part, { camera, mode, turning });
  }

  function approach(factor) {
    camera.reach = Math.min(150, Math.max(3, camera.reach * factor));
    ask();
  }

  for (const canvas of canvases) {
    const fingers = new Map();
    const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const before = fingers.size === 2 ? spread() : 0, now = { x: event.clientX, y: event.clientY };
      fingers.set(event.pointerId, now);
      if (fingers.size === 2) approach(before / Math.max(spread(), 1));
      else turn((now.x - last.x) * 0.008, (now.y - last.y) * 0.006);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => fingers.delete(e.pointerId));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      approach(Math.exp(event.deltaY * 0.001));
    }, { passive: false });
    const keys = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08] };
    canvas.addEventListener("keydown", (event) => {
      if (keys[event.key]) turn(...keys[event.key]);
      else if (event.key === "+") approach(0.87);
      else if (event.key === "-") approach(1.15);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(ask).observe(canvas);
  }
  for (const button of root.querySelectorAll("button")) button.addEventListener("click", () => {
    if (button.dataset.view) Object.assign(camera, VIEWS[button.dataset.view]);
    if (button.dataset.mode) mode = button.dataset.mode;
    if ("turn" in button.dataset) { turning = !turning; on(); }
    show();
    ask();
  });
  document.addEventListener("theme", ask);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ask);
  show();
  ask();
  on();
}

// ------------------------------------------------------------------ many runs: which are meant, and their front

const COMPARED = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b, "==": (a, b) => a === b, "!=": (a, b) => a !== b,
};

// Whether a run is meant: comparisons joined by "and" and "or", and parts of names.
function meaning(text, runs) {
  const test = (said) => {
    const found = said.match(/^([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.+)$/);
    if (!found) return (run) => JSON.stringify(Object.values(run)).toLowerCase().includes(said.toLowerCase());
    const [, key, op, word] = found, value = word.replace(/^(["'])(.*)\1$/, "$2"), number = Number(value);
    if (!runs.some((run) => key in run)) {
      throw new Error(`unknown key ${key}; known: ${[...new Set(runs.flatMap(Object.keys))].sort().join(", ")}`);
    }
    return (run) => key in run && COMPARED[op](run[key], typeof run[key] === "number" ? number : value);
  };
  const any = text.split(/\s+or\s+/i).map((one) => one.split(/\s+and\s+/i).map((said) => said.trim()).filter(Boolean).map(test));
  return (run) => any.some((every) => every.every((one) => one(run)));
}

function drawFront(svg) {
  const lower = svg.dataset.lower === "true";
  const at = (dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value];
  const dots = [...svg.querySelectorAll('circle[data-role="student"]')].filter((dot) => !dot.classList.contains("out")).map(at);
  dots.sort((a, b) => a[0] - b[0] || (lower ? b[1] - a[1] : a[1] - b[1]));
  let path = "", last = null;
  for (const [x, y] of dots) {
    if (last !== null && (lower ? y <= last : y >= last)) continue;
    path += path ? `H${x}V${y}` : `M${x} ${y}`;
    last = y;
  }
  svg.querySelector(".edge").setAttribute("d", path && `${path}H${svg.viewBox.baseVal.width - 14}`);
}

function filtering(input) {
  const rows = [...document.querySelectorAll("tr[data-run]")].map((row) => [row, JSON.parse(row.dataset.run)]);
  const told = input.parentNode.querySelector("output");
  input.addEventListener("input", () => {
    const text = input.value.trim();
    let meant;
    try {
      meant = meaning(text, rows.map(([, run]) => run));
    } catch (error) {
      told.textContent = error.message;
      return;
    }
    const out = new Set();
    for (const [row, run] of rows) {
      row.hidden = text !== "" && !meant(run);
      if (row.hidden) out.add(run.run);
    }
    for (const dot of document.querySelectorAll("circle[data-run]")) dot.classList.toggle("out", out.has(dot.dataset.run));
    document.querySelectorAll("svg.front").forEach(drawFront);
    told.textContent = text && `${rows.length - out.size} of ${rows.length} runs`;
  });
}

// ------------------------------------------------------------------ all of it

function enliven(root) {
  const each = { "svg[data-plot]": readings, audio: sounding, ".picture img": enlarging, "th.sortable": sorting,
    ".clouds": clouds, "#filter": filtering };
  for (const [what, how] of Object.entries(each)) root.querySelectorAll(what).forEach(how);
}

enliven(document);
