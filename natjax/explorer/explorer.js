// The explorer: draws the window and the weights of one token. Windows and weights come from natjax; nothing is computed here.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("map");
const photo = new Image();
const RAMP = [[24, 15, 62], [104, 31, 129], [205, 64, 113], [251, 135, 97], [252, 236, 174]]; // from small to large weights
const shown = { layer: 0, head: -1, x: 0, y: 0 }; // an index of data.layers, a head (-1: their mean), a pixel of the image
let layers = [];

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)));
}

const rgb = (share, alpha = 1) => `rgb(${colour(share).join(" ")} / ${alpha})`;
const number = (value) => value.toFixed(4);
const cell = (layer) => data.patch * 2 ** (layer.level - 1); // pixels per token

function token(layer) {
  const place = (pixel, length) => Math.min(Math.floor(pixel / cell(layer)), length - 1);
  return [place(shown.y, layer.size[0]), place(shown.x, layer.size[1])];
}

// The weights of a token's neighbours, row by row; the mean over heads where head is -1.
function weightsOf(layer, head, [row, column]) {
  const count = layer.kernel[0] * layer.kernel[1];
  const heads = head < 0 ? [...Array(layer.heads).keys()] : [head];
  const sum = new Float64Array(count);
  for (const h of heads) {
    const query = (h * layer.map[0] + row) * layer.map[1] + column;
    const scale = layer.largest[query] / 255 / heads.length;
    for (let i = 0; i < count; i++) sum[i] += layer.weights[query * count + i] * scale;
  }
  return sum;
}

// Where the weights of a token lie: one entry per neighbour, in their order.
function neighbours(layer, [row, column]) {
  return layer.rows[row].flatMap((r) => layer.columns[column].map((c) => [r, c]));
}

function current() {
  const layer = layers[shown.layer];
  const at = token(layer);
  const weights = weightsOf(layer, shown.head, at);
  return { layer, at, weights, places: neighbours(layer, at), most: Math.max(...weights) };
}

function draw() {
  const state = current();
  drawPhoto(state);
  drawTable(state);
  drawHeads(state);
  element("most").textContent = number(state.most);
  element("readout").textContent = words(state);
}

function drawPhoto({ layer, at, weights, places, most }) {
  const scale = canvas.width / data.width, side = cell(layer) * scale, pen = canvas.getContext("2d");
  const box = ([row, column]) => [column * side, row * side, side, side];
  pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
  pen.fillStyle = "rgb(8 10 16 / 0.42)";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  places.forEach((place, i) => {
    const [x, y, w, h] = box(place);
    pen.drawImage(photo, x / scale, y / scale, w / scale, h / scale, x, y, w, h);
    pen.fillStyle = rgb(weights[i] / most, 0.78);
    pen.fillRect(x, y, w, h);
    pen.strokeStyle = "rgb(255 255 255 / 0.3)";
    pen.strokeRect(x, y, w, h);
  });
  const [first, last] = [box(places[0]), box(places[places.length - 1])];
  outline(pen, [first[0], first[1], last[0] + side - first[0], last[1] + side - first[1]], "#fff", 2);
  outline(pen, box(at), "#4cc2ff", 4);
}

function outline(pen, box, colour, width) {
  for (const [style, w] of [["#000", width + 3], [colour, width]]) {
    pen.strokeStyle = style;
    pen.lineWidth = w;
    pen.strokeRect(...box);
  }
  pen.lineWidth = 1;
}

function drawTable({ layer, at, weights, places, most }) {
  const body = document.createElement("tbody"), small = layer.kernel[1] <= 9;
  for (let a = 0; a < layer.kernel[0]; a++) {
    const row = body.insertRow();
    for (let b = 0; b < layer.kernel[1]; b++) {
      const i = a * layer.kernel[1] + b, td = row.insertCell(), share = weights[i] / most;
      td.dataset.index = i;
      td.textContent = small ? weights[i].toFixed(3).slice(1) : "";
      td.style.background = rgb(share);
      td.style.color = share > 0.55 ? "#111" : "#fff";
      td.classList.toggle("query", places[i][0] === at[0] && places[i][1] === at[1]);
      td.title = told(layer, places[i], weights[i]);
    }
  }
  element("window").replaceChildren(body);
}

function drawHeads({ layer, at }) {
  for (const input of element("heads").querySelectorAll("input")) {
    const weights = weightsOf(layer, Number(input.value), at), most = Math.max(...weights);
    const pen = input.parentElement.querySelector("canvas").getContext("2d");
    weights.forEach((weight, i) => {
      pen.fillStyle = rgb(weight / most);
      pen.fillRect(i % layer.kernel[1], Math.floor(i / layer.kernel[1]), 1, 1);
    });
  }
}

function told(layer, [row, column], weight) {
  const padding = row >= layer.size[0] || column >= layer.size[1] ? " (padding)" : "";
  return `Row ${row}, column ${column}${padding}: ${number(weight)}`;
}

function words({ layer, at, weights, places, most }) {
  const best = places[weights.indexOf(most)], last = places[places.length - 1], first = places[0];
  const centred = (axis) => at[axis] - first[axis] === Math.floor(layer.kernel[axis] / 2) * layer.dilation[axis];
  const shifted = [0, 1].filter((axis) => !centred(axis)).map((axis) => ["row", "column"][axis]);
  const head = shown.head < 0 ? `the mean of ${layer.heads} head${layer.heads > 1 ? "s" : ""}` : `head ${shown.head + 1}`;
  return [
    `Pixel ${shown.x}, ${shown.y} is in the token of row ${at[0]}, column ${at[1]} of ${layer.size[0]} × ${layer.size[1]}`,
    `(level ${layer.level}, layer ${layer.layer}, ${head}).`,
    `Its window: ${layer.kernel.join(" × ")} tokens, dilation ${[...new Set(layer.dilation)].join(" × ")},`,
    `rows ${first[0]} to ${last[0]}, columns ${first[1]} to ${last[1]}.`,
    shifted.length ? `Near the border it is shifted inward, along its ${shifted.join("s and its ")}s.` : "",
    `Largest weight: ${number(most)}, row ${best[0]}, column ${best[1]}.`,
  ].filter(Boolean).join(" ");
}

function choices(id, values, chosen, choose, thumbnail) {
  element(id).replaceChildren(...values.map(([value, text]) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: id, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    if (thumbnail) {
      const picture = document.createElement("canvas");
      [picture.height, picture.width] = thumbnail;
      label.append(picture);
    }
    label.append(input, text);
    return label;
  }));
}

function chooseLayer(index) {
  shown.layer = index;
  const layer = layers[index];
  shown.head = Math.min(shown.head, layer.heads - 1);
  const numbers = [...new Set(layers.map((other) => other.level))];
  const siblings = layers.flatMap((other, i) => (other.level === layer.level ? [[i, `${other.layer}`]] : []));
  if (element("levels").querySelector(":checked")?.value !== String(layer.level)) {
    choices("levels", numbers.map((n) => [n, `${n}`]), layer.level, (n) => chooseLayer(layers.findIndex((l) => l.level === n)));
  }
  if (element("layers").querySelector(":checked")?.value !== String(index)) {
    choices("layers", siblings, index, chooseLayer);
  }
  const heads = [[-1, "mean"], ...Array.from({ length: layer.heads }, (_, h) => [h, `${h + 1}`])];
  choices("heads", heads, shown.head, (head) => { shown.head = head; draw(); }, layer.kernel);
  draw();
}

function moveTo(x, y) {
  shown.x = Math.min(Math.max(Math.floor(x), 0), data.width - 1);
  shown.y = Math.min(Math.max(Math.floor(y), 0), data.height - 1);
  draw();
}

// The pixel of the image under the pointer; the canvas keeps its shape within its box (object-fit: contain).
function pixelAt(event) {
  const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / data.width, box.height / data.height);
  return [
    (event.clientX - box.left - (box.width - data.width * scale) / 2) / scale,
    (event.clientY - box.top - (box.height - data.height * scale) / 2) / scale,
  ];
}

function tell(index) {
  const { layer, places, weights } = current();
  element("hover").textContent = index >= 0 ? told(layer, places[index], weights[index]) : "Point at a cell for its number.";
}

function listen() {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("click", (event) => moveTo(...pixelAt(event)));
  canvas.addEventListener("keydown", (event) => {
    const layer = layers[shown.layer], side = cell(layer), step = steps[event.key];
    if (event.key === "Home") moveTo(data.width / 2, data.height / 2);
    else if (step) {
      const [row, column] = token(layer), clamp = (value, length) => Math.min(Math.max(value, 0), length - 1);
      const middle = (value, length) => (clamp(value, length) + 0.5) * side;
      moveTo(middle(column + step[0], layer.size[1]), middle(row + step[1], layer.size[0]));
    } else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const { layer, places } = current(), [x, y] = pixelAt(event).map((pixel) => Math.floor(pixel / cell(layer)));
    tell(places.findIndex(([row, column]) => row === y && column === x));
  });
  element("window").addEventListener("pointermove", (event) => tell(Number(event.target.dataset.index ?? -1)));
}

async function start() {
  photo.src = data.image;
  await photo.decode();
  layers = await Promise.all(data.layers.map(async (layer) => ({
    ...layer,
    weights: new Uint8Array(await unpacked(layer.weights)),
    largest: new Float32Array(await unpacked(layer.largest)),
  })));
  const sharp = Math.max(1, Math.ceil(1200 / Math.max(data.width, data.height))); // lines thinner than a pixel of the image
  [canvas.width, canvas.height] = [data.width * sharp, data.height * sharp];
  document.querySelector("#legend i").style.background = `linear-gradient(90deg, ${RAMP.map((_, i) => rgb(i / (RAMP.length - 1)))})`;
  listen();
  [shown.x, shown.y] = [Math.floor(data.width / 2), Math.floor(data.height / 2)];
  chooseLayer(0);
  document.documentElement.dataset.ready = "yes";
}

start();
