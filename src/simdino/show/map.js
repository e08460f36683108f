"use strict";
// The map itself: where images lie, how they are drawn, and what the pointer and the keys do on it. map_panel.js, which
// follows, fills what stands beside it. Letters: i is an image, (x, y) a place on the screen in CSS pixels.

const GOLDEN = (5 ** .5 - 1) / 2;
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("canvas"), pen = canvas.getContext("2d");
const dark = matchMedia("(prefers-color-scheme: dark)"), still = matchMedia("(prefers-reduced-motion: reduce)");
const sheets = [...document.querySelectorAll("#sheets img")];
// In an order that is spread over all of them, so that no folder lies on top of the others or has all the thumbnails.
const images = data.names.map((_, i) => i).sort((i, j) => i * GOLDEN % 1 - j * GOLDEN % 1);

const DOT = 4.2, NEAR = 12; // radius of a point, and how far from it a click may be
const SMALLEST = 34; // side of a thumbnail on the whole map; it grows as one zooms in
const DEEPEST = 400; // times the whole map
const MARGIN = 44;

const state = {
  plane: Object.keys(data.planes)[0], grouping: 0, style: "pictures",
  hidden: data.groupings.map(() => new Set()), // classes that are switched off
  hovered: null, chosen: null, // images
  selected: new Set(), // images of the lasso
  found: null, // images whose name has what is searched for
  shownAlone: null, // the class under the pointer in the legend
  lassoing: false, lasso: [], // places
};
let width = 0, height = 0;
let view = { scale: 1, x: 0, y: 0 }, whole = 1;
let points = data.planes[state.plane];
let pictured = []; // images drawn as thumbnails

// ---- classes and their looks

const grouping = () => data.groupings[state.grouping];
const classOf = (i) => grouping().labels[i];
const palette = () => data.colours[dark.matches ? "dark" : "light"];
const colourOf = (c) => palette()[c % palette().length];
const visible = (i) => !state.hidden[state.grouping].has(classOf(i));

const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

function trace(on, c, x, y, r) { // the shape of a class: another after every round of colours
  const shape = Math.floor(c / palette().length) % 4;
  on.beginPath();
  if (shape === 0) on.arc(x, y, r, 0, 7);
  else if (shape === 1) on.rect(x - r * .88, y - r * .88, r * 1.76, r * 1.76);
  else {
    const up = shape === 2 ? 1.25 : 1.35, low = shape === 2 ? .85 : 0, side = shape === 2 ? 1.2 : 1.25;
    on.moveTo(x, y - r * up), on.lineTo(x + r * side, y + r * low);
    if (shape === 3) on.lineTo(x, y + r * up);
    on.lineTo(x - r * side, y + r * low), on.closePath();
  }
}

function emphasised() { // the images that stand out, or null where all are equal
  if (state.shownAlone !== null) return { has: (i) => classOf(i) === state.shownAlone };
  if (state.chosen !== null) return new Set([state.chosen, ...data.neighbours[state.chosen]]);
  return state.found ?? (state.selected.size ? state.selected : null);
}

// ---- where things are

const across = (i) => points[i][0] * view.scale + view.x;
const down = (i) => -points[i][1] * view.scale + view.y;
const side = () => Math.min(Math.max(data.cell, 64), SMALLEST * (steps() / whole) ** .4); // of a thumbnail
const steps = () => 2 ** (Math.floor(Math.log2(view.scale) * 3) / 3); // the scale in steps: thumbnails do not flicker

function fit() {
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) {
    left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, -y), bottom = Math.max(bottom, -y);
  }
  const room = (length, span) => Math.max(40, length - 2 * MARGIN) / Math.max(span, .02);
  whole = Math.min(room(width, right - left), room(height, bottom - top));
  return { scale: whole, x: width / 2 - whole * (left + right) / 2, y: height / 2 - whole * (top + bottom) / 2 };
}

function zoomed(by, x = width / 2, y = height / 2) {
  const scale = Math.min(Math.max(view.scale * by, whole / 3), whole * DEEPEST), ratio = scale / view.scale;
  return { scale, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio };
}

function over(i) { // the view with an image in its middle, near enough to tell it from others
  const scale = Math.max(view.scale, whole * 3);
  return { scale, x: width / 2 - points[i][0] * scale, y: height / 2 + points[i][1] * scale };
}

let frame = 0;
function animate(change, milliseconds = 350) { // change(share) for shares from 0 to 1
  cancelAnimationFrame(frame);
  if (still.matches) return change(1), draw();
  const start = performance.now();
  (function step(now) {
    const t = Math.min(1, Math.max(0, (now - start) / milliseconds));
    change(t * t * (3 - 2 * t)), draw();
    if (t < 1) frame = requestAnimationFrame(step);
  })(start);
}

function goTo(target) {
  const from = { ...view };
  animate((t) => { for (const key in view) view[key] = from[key] * (1 - t) + target[key] * t; });
}

function showPlane(name) {
  const from = points, to = data.planes[name];
  state.plane = name, points = to;
  const old = { ...view }, target = fit();
  animate((t) => {
    points = t === 1 ? to : to.map((p, i) => [from[i][0] * (1 - t) + p[0] * t, from[i][1] * (1 - t) + p[1] * t]);
    for (const key in view) view[key] = old[key] * (1 - t) + target[key] * t;
  }, 700);
}

function thumbnailsThatFit() { // the first of those that would overlap is drawn, whatever part of the map is seen
  const scale = steps(), s = side() * 1.06, cells = new Map(), taken = [];
  const key = (column, row) => column * 1e6 + row;
  const stands = emphasised();
  const order = stands ? [...images.filter((i) => stands.has(i)), ...images.filter((i) => !stands.has(i))] : [...images];
  if (state.chosen !== null) order.unshift(state.chosen);
  for (const i of order.filter(visible)) {
    const x = points[i][0] * scale, y = points[i][1] * scale, column = Math.floor(x / s), row = Math.floor(y / s);
    let free = true;
    for (let a = column - 1; free && a <= column + 1; a++) for (let b = row - 1; free && b <= row + 1; b++) {
      const other = cells.get(key(a, b));
      free = !other || Math.abs(other[0] - x) >= s || Math.abs(other[1] - y) >= s;
    }
    if (free) cells.set(key(column, row), [x, y]), taken.push(i);
  }
  return taken;
}

function imageAt(x, y) { // what is drawn there: a thumbnail, else the nearest point
  for (const i of [...pictured].reverse()) {
    const [w, h] = boxOf(i);
    if (Math.abs(across(i) - x) <= w / 2 && Math.abs(down(i) - y) <= h / 2) return i;
  }
  let best = null, least = NEAR ** 2;
  for (const i of images) {
    const d = (across(i) - x) ** 2 + (down(i) - y) ** 2;
    if (d < least && visible(i)) best = i, least = d;
  }
  return best;
}

// ---- drawing

function place(i) { // sheet, left and top of a thumbnail
  const perSheet = data.columns ** 2, cell = i % perSheet;
  return [sheets[Math.floor(i / perSheet)], cell % data.columns * data.cell, Math.floor(cell / data.columns) * data.cell];
}

function boxOf(i, s = side()) { // width and height of an image in a square
  const [w, h] = data.sizes[i], ratio = s / Math.max(w, h);
  return [w * ratio, h * ratio];
}

function paint(on, i, x, y, w, h) { // the thumbnail in a box; pixels of much smaller ones stay square
  const [sheet, left, top] = place(i), [ownWidth, ownHeight] = data.sizes[i];
  on.imageSmoothingEnabled = w / ownWidth < 2.5, on.imageSmoothingQuality = "high";
  if (sheet.complete) on.drawImage(sheet, left, top, ownWidth, ownHeight, x, y, w, h);
}

function drawDot(i, r = DOT) {
  pen.fillStyle = colourOf(classOf(i));
  trace(pen, classOf(i), across(i), down(i), r), pen.fill();
}

function drawPicture(i, opacity = 1) { // on paper, so that no dot shines through
  const [w, h] = boxOf(i), x = across(i) - w / 2, y = down(i) - h / 2, edge = i === state.chosen ? 4 : 2;
  if (x > width || y > height || x + w < 0 || y + h < 0) return;
  pen.beginPath(), pen.roundRect(x - edge, y - edge, w + 2 * edge, h + 2 * edge, edge + 2);
  pen.globalAlpha = 1, pen.fillStyle = tone("--paper"), pen.fill();
  pen.globalAlpha = opacity, pen.fillStyle = colourOf(classOf(i)), pen.fill();
  paint(pen, i, x, y, w, h);
}

function drawNeighbours(asPicture) { // lines from the chosen image; thumbnails, and rings where they do not fit
  const i = state.chosen, near = data.neighbours[i].filter(visible);
  pen.strokeStyle = tone("--ink"), pen.lineWidth = 1.3, pen.globalAlpha = .55;
  for (const j of near) pen.beginPath(), pen.moveTo(across(i), down(i)), pen.lineTo(across(j), down(j)), pen.stroke();
  pen.globalAlpha = 1, pen.lineWidth = 2;
  for (const j of [...near, i]) {
    if (asPicture.has(j)) drawPicture(j);
    else drawDot(j, DOT + 1.5), trace(pen, classOf(j), across(j), down(j), DOT + 3), pen.stroke();
  }
}

function drawLasso() {
  pen.beginPath(), state.lasso.forEach(([x, y]) => pen.lineTo(x, y)), pen.closePath();
  pen.fillStyle = pen.strokeStyle = tone("--accent"), pen.globalAlpha = .12, pen.fill();
  pen.globalAlpha = 1, pen.lineWidth = 1.6, pen.setLineDash([5, 4]), pen.stroke(), pen.setLineDash([]);
}

function draw() { // points below pictures, what stands out above the rest
  const ratio = devicePixelRatio || 1, stands = emphasised(), behind = (i) => stands !== null && !stands.has(i);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0), pen.clearRect(0, 0, width, height);
  pictured = state.style === "dots" ? [] : thumbnailsThatFit();
  const asPicture = new Set(pictured);
  for (const faint of [true, false]) {
    pen.globalAlpha = faint ? .16 : .9;
    for (const i of images) if (visible(i) && behind(i) === faint && !asPicture.has(i)) drawDot(i);
  }
  for (const faint of [true, false]) {
    for (const i of pictured) if (behind(i) === faint) drawPicture(i, faint ? .2 : 1);
  }
  pen.globalAlpha = 1;
  if (state.chosen !== null) drawNeighbours(asPicture);
  if (state.hovered !== null && !asPicture.has(state.hovered)) drawDot(state.hovered, DOT + 2.5);
  if (state.lasso.length > 1) drawLasso();
}

let asked = false;
function redraw() { // once a frame, however often it is asked for
  if (!asked) asked = true, requestAnimationFrame(() => { asked = false, draw(); });
}

function resize() {
  const box = canvas.parentElement.getBoundingClientRect(), ratio = devicePixelRatio || 1, first = width === 0;
  const moved = [(box.width - width) / 2, (box.height - height) / 2];
  width = box.width, height = box.height;
  canvas.width = Math.round(width * ratio), canvas.height = Math.round(height * ratio);
  const atWhole = first || Math.abs(view.scale / whole - 1) < 1e-6, fitted = fit();
  view = atWhole ? fitted : { scale: view.scale, x: view.x + moved[0], y: view.y + moved[1] };
  draw();
}

// ---- pointers and keys

const pointers = new Map(); // id -> place, of those that are down
let dragged = 0; // how far, since the first went down

const at = (event) => [event.offsetX, event.offsetY];

canvas.addEventListener("pointerdown", (event) => {
  if (event.button > 0) return;
  canvas.setPointerCapture(event.pointerId), cancelAnimationFrame(frame);
  pointers.set(event.pointerId, at(event)), dragged = pointers.size > 1 ? Infinity : 0;
  state.lasso = pointers.size === 1 && (state.lassoing || event.shiftKey) ? [at(event)] : [];
  hover(null);
});

canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId), now = at(event);
  if (!before) return event.pointerType === "mouse" ? hover(imageAt(...now), event) : undefined;
  dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (state.lasso.length) state.lasso.push(now);
  else if (other) {
    const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
    view = zoomed(apart(now) / Math.max(1, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    view.x += (now[0] - before[0]) / 2, view.y += (now[1] - before[1]) / 2;
  } else if (dragged > 3) view.x += now[0] - before[0], view.y += now[1] - before[1], canvas.classList.add("moving");
  pointers.set(event.pointerId, now), redraw();
});

function released(event) {
  if (!pointers.delete(event.pointerId)) return;
  canvas.classList.remove("moving");
  if (state.lasso.length > 2) select(images.filter((i) => visible(i) && inside(across(i), down(i), state.lasso)));
  else if (dragged <= 3 && event.type === "pointerup") choose(imageAt(...at(event)));
  if (state.lasso.length) setLassoing(false);
  state.lasso = [], redraw();
}
canvas.addEventListener("pointerup", released);
canvas.addEventListener("pointercancel", released);
canvas.addEventListener("pointerleave", () => hover(null));

canvas.addEventListener("wheel", (event) => {
  event.preventDefault(), cancelAnimationFrame(frame);
  const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
  view = zoomed(Math.exp(-pixels * (event.ctrlKey ? .01 : .0016)), ...at(event)); // ctrl: two fingers on a touchpad
  hover(null), redraw();
}, { passive: false });

function inside(x, y, corners) { // whether a place lies in a polygon: a ray crosses its border an odd number of times
  let odd = false;
  corners.forEach(([x1, y1], k) => {
    const [x2, y2] = corners[(k || corners.length) - 1];
    if ((y1 > y) !== (y2 > y) && x < (x2 - x1) * (y - y1) / (y2 - y1) + x1) odd = !odd;
  });
  return odd;
}

function setLassoing(on) {
  state.lassoing = on, canvas.classList.toggle("drawing", on), element("lasso").setAttribute("aria-pressed", on);
}

const KEYS = {
  "+": () => goTo(zoomed(1.6)), "=": () => goTo(zoomed(1.6)), "-": () => goTo(zoomed(1 / 1.6)), 0: () => goTo(fit()),
  l: () => setLassoing(!state.lassoing), "/": () => element("search").focus(),
  Escape: () => { setLassoing(false), state.lasso = [], state.chosen === null ? select([]) : choose(null); },
};
const ARROWS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = event.target === canvas && ARROWS[event.key];
  if (arrow) goTo({ scale: view.scale, x: view.x + arrow[0], y: view.y + arrow[1] });
  else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
});
