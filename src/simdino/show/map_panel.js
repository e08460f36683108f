// What stands beside the map: the card under the pointer, the chosen image, the selection, the legend and the tools.

const MEMBERS = 48, CLASSES = 8; // of a selection that are shown

function make(tag, properties = {}, ...children) { // an element; text goes in as text, never as HTML
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function small(i, s) { // an image on a canvas of its own
  const ratio = devicePixelRatio || 1, [w, h] = boxOf(i, s).map((length) => Math.max(1, Math.round(length)));
  const own = make("canvas", { width: w * ratio, height: h * ratio });
  own.style.width = `${w}px`, own.style.height = `${h}px`;
  paint(own.getContext("2d"), i, 0, 0, w * ratio, h * ratio);
  return own;
}

function mark(c) { // the colour and shape of a class
  const ratio = devicePixelRatio || 1, own = make("canvas", { width: 16 * ratio, height: 16 * ratio }), on = own.getContext("2d");
  own.style.width = own.style.height = "16px";
  on.scale(ratio, ratio), on.fillStyle = colourOf(c), trace(on, c, 8, 8, 5.2), on.fill();
  return own;
}

function thumb(i, s, caption = "") { // a button that goes to an image
  const frame = make("span", {}, small(i, s));
  frame.style.setProperty("--own", colourOf(classOf(i)));
  const button = make("button", { title: data.names[i], onclick: () => { choose(i), goTo(over(i)); } }, frame, caption);
  button.setAttribute("aria-label", `${data.names[i]} ${caption}`);
  return button;
}

// ---- the card under the pointer

function hover(i, event) {
  const card = element("card");
  if (i !== state.hovered) {
    state.hovered = i, card.hidden = i === null, canvas.classList.toggle("over", i !== null), redraw();
    if (i !== null) card.replaceChildren(small(i, Math.min(224, Math.max(2 * data.cell, 112))), make("p", {}, data.names[i]),
      make("p", { className: "of" }, mark(classOf(i)), grouping().classes[classOf(i)]));
  }
  if (i === null) return;
  const box = card.getBoundingClientRect(), gap = 18;
  const x = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
  const y = Math.min(Math.max(8, event.clientY - box.height / 2), innerHeight - box.height - 8);
  card.style.transform = `translate(${Math.max(4, x)}px, ${y}px)`;
}

// ---- the chosen image and its neighbours

function choose(i) {
  state.chosen = i, element("picture").hidden = i === null, redraw();
  if (i === null) return;
  element("large").replaceChildren(small(i, 132));
  element("name").textContent = data.names[i];
  element("classes").replaceChildren(...data.groupings.map((one, g) => {
    const c = one.labels[i];
    return make("span", {}, ...(g === state.grouping ? [mark(c)] : []), one.classes[c]);
  }));
  const near = data.neighbours[i], alike = near.filter((j) => classOf(j) === classOf(i)).length;
  element("nearest").textContent = `Nearest images, by cosine: ${alike} of ${near.length} in the same ${grouping().name}`;
  element("neighbours").replaceChildren(...near.map((j, k) => thumb(j, 54, data.cosines[i][k].toFixed(2))));
  element("picture").parentElement.scrollTop = 0;
}

// ---- the selection

const listed = () => [...state.selected].sort((i, j) => i - j).map((i) => `${data.names[i]}\n`).join("");

function select(chosen) {
  state.selected = new Set(chosen), element("selection").hidden = !chosen.length, redraw();
  if (!chosen.length) return;
  element("counted").textContent = chosen.length === 1 ? "1 image selected" : `${chosen.length.toLocaleString("en")} images selected`;
  showShares();
  const rest = chosen.length - MEMBERS;
  element("members").replaceChildren(...chosen.slice(0, MEMBERS).map((i) => thumb(i, 34)),
    ...(rest > 0 ? [make("div", { className: "more" }, `and ${rest.toLocaleString("en")} more`)] : []));
  element("files").value = listed();
  element("copy").textContent = "Copy the list";
}

function showShares() { // how many of each class are selected
  const counts = new Map();
  for (const i of state.selected) counts.set(classOf(i), (counts.get(classOf(i)) ?? 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1]).slice(0, CLASSES);
  element("shares").replaceChildren(...rows.map(([c, n]) => make("div", { className: "share" },
    mark(c), make("span", { className: "label" }, grouping().classes[c]), make("span", { className: "number" }, n))));
}

async function copy() {
  const files = element("files");
  let copied = true;
  try {
    await navigator.clipboard.writeText(listed());
  } catch { // a page without the right to the clipboard
    files.select(), copied = document.execCommand("copy");
  }
  element("copy").textContent = copied ? "Copied" : "Press Ctrl-C";
}

function download() {
  const link = make("a", { href: URL.createObjectURL(new Blob([listed()], { type: "text/plain" })), download: "images.txt" });
  link.click(), setTimeout(() => URL.revokeObjectURL(link.href), 10000); // some browsers read it later
}

// ---- legend and tools

function legend() {
  const counts = grouping().classes.map(() => 0), off = state.hidden[state.grouping];
  for (const i of images) counts[classOf(i)]++;
  const show = () => { entries.forEach((entry, c) => entry.setAttribute("aria-pressed", !off.has(c))), redraw(); };
  const toggle = (c) => { off.delete(c) || off.add(c), state.shownAlone = null, show(); };
  const alone = (c) => { // or all, where it is alone already
    const only = off.size === counts.length - 1 && !off.has(c);
    off.clear(), counts.forEach((_, other) => { if (!only && other !== c) off.add(other); }), state.shownAlone = null, show();
  };
  const entries = grouping().classes.map((name, c) => make("button", {
    title: name, onclick: () => toggle(c), ondblclick: () => alone(c),
    onpointerenter: () => { state.shownAlone = off.has(c) ? null : c, redraw(); },
    onpointerleave: () => { state.shownAlone = null, redraw(); },
  }, mark(c), make("span", { className: "label" }, name), make("span", { className: "number" }, counts[c].toLocaleString("en"))));
  element("legend").replaceChildren(...entries), show();
}

function choice(id, names, current, change) { // buttons of which one is pressed
  if (names.length < 2) return;
  const buttons = names.map((name) => make("button", { textContent: name, onclick: () => { press(name), change(name); } }));
  const press = (name) => buttons.forEach((button) => button.setAttribute("aria-pressed", button.textContent === name));
  press(current), element(id).replaceChildren(...buttons);
}

function recolour() { // after another grouping or theme
  legend(), state.chosen !== null && choose(state.chosen), state.selected.size && select([...state.selected]), redraw();
}

function search(text) {
  const wanted = text.trim().toLowerCase();
  state.found = wanted ? new Set(images.filter((i) => data.names[i].toLowerCase().includes(wanted))) : null;
  element("found").textContent = state.found ? state.found.size.toLocaleString("en") : "", redraw();
}

element("title").textContent = data.title;
element("notes").textContent = data.notes.join(" · ");
element("search").oninput = (event) => search(event.target.value);
element("search").onkeydown = (event) => {
  if (event.key === "Escape") event.target.value = "", search(""), canvas.focus();
  if (event.key === "Enter" && state.found?.size) select([...state.found]);
};
element("lasso").onclick = () => setLassoing(!state.lassoing);
element("in").onclick = KEYS["+"], element("out").onclick = KEYS["-"], element("whole").onclick = KEYS[0];
element("leave").onclick = () => choose(null), element("clear").onclick = () => select([]);
element("copy").onclick = copy, element("download").onclick = download;
choice("planes", Object.keys(data.planes), state.plane, showPlane);
choice("styles", ["dots", "pictures"], state.style, (style) => { state.style = style, redraw(); });
choice("groupings", data.groupings.map((one) => one.name), grouping().name, (name) => {
  state.grouping = data.groupings.findIndex((one) => one.name === name), recolour();
});
dark.addEventListener("change", recolour);
new ResizeObserver(resize).observe(canvas.parentElement);
legend();
Promise.all(sheets.map((sheet) => sheet.decode())).then(() => { document.body.dataset.ready = "yes", draw(); });
