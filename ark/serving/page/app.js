"use strict";
// Okabe and Ito's palette, as in every picture of Ark: told apart by colour-blind readers
const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF"];
const TINT = 0.45;
const DRAWN = 1200; // pixels of the longer side of the picture
const $ = (id) => document.getElementById(id);
const colour = (index) => PALETTE[index % PALETTE.length];
let model, image, found, turn = 0;

async function begin() {
  model = await (await fetch("/api/model")).json();
  $("name").textContent = document.title = model.name;
  const license = model.license ? `, license ${model.license}` : "";
  $("about").textContent =
    `${model.backbone}, ${model.which}, ${model.image_size} × ${model.image_size} pixels${license}`;
  for (const key of Object.keys(model.tasks)) $("task").add(new Option(key, key));
  if (!$("task").length) say("This model has no heads: ark.load(...).features gives what it sees.");
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").className = bad ? "bad" : "";
}

// of several images that are dropped in a hurry the last one is shown
async function look(file) {
  const mine = ++turn;
  say(`${file.name}: looking …`);
  try {
    const answer = await fetch("/api/predict", { method: "POST", body: file });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    const shown = await createImageBitmap(file);
    await decode(content.tasks);
    if (mine !== turn) return;
    [image, found] = [shown, content.tasks];
    say(`${file.name}: ${image.width} × ${image.height} pixels, ${content.seconds} s`);
    draw();
  } catch (error) {
    if (mine !== turn) return;
    clear(); // nobody takes an older image's findings for this file's
    say(`${file.name}: ${error.message}`, true);
  }
}

function clear() {
  [image, found] = [null, null];
  $("rows").replaceChildren();
  $("picture").hidden = true;
  $("hint").hidden = false;
  $("drop").classList.remove("full");
}

async function decode(tasks) {
  for (const task of Object.values(tasks))
    for (const [name, png] of Object.entries(task.masks ?? {})) {
      const picture = new Image();
      picture.src = `data:image/png;base64,${png}`;
      await picture.decode();
      const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.drawImage(picture, 0, 0);
      task.masks[name] = pen.getImageData(0, 0, canvas.width, canvas.height);
    }
}

function draw() {
  if (!found) return;
  const [key, threshold] = [$("task").value, Number($("threshold").value)];
  const { classes } = model.tasks[key], task = found[key], canvas = $("picture");
  // a small image is drawn larger, a huge one smaller; pens count in its own pixels
  const scale = DRAWN / Math.max(image.width, image.height);
  [canvas.width, canvas.height] = [image.width * scale, image.height * scale].map(Math.round);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.drawImage(image, 0, 0);
  $("rows").replaceChildren();
  if (task.masks) masks(pen, task.masks, classes, threshold);
  else if (task.boxes) boxes(pen, task.boxes, classes, threshold);
  else if (task.points) points(pen, task.points, classes, threshold);
  else if (task.values) for (const name of classes) row(name, task.values[name]);
  else for (const name of classes) row(name, task.classes[name], { bar: task.classes[name], threshold });
  $("threshold").disabled = Boolean(task.values);
  canvas.setAttribute("aria-label", `${key}: ${$("rows").innerText}`);
  canvas.hidden = false;
  $("hint").hidden = true;
  $("drop").classList.add("full");
}

function masks(pen, all, classes, threshold) {
  classes.forEach((name, index) => {
    const mask = all[name], [r, g, b] = rgb(colour(index));
    const tint = new ImageData(mask.width, mask.height);
    let count = 0;
    for (let i = 0; i < mask.data.length; i += 4)
      if (mask.data[i] / 255 >= threshold && mask.data[i]) {
        tint.data.set([r, g, b, 255 * TINT], i);
        count++;
      }
    const layer = new OffscreenCanvas(mask.width, mask.height);
    layer.getContext("2d").putImageData(tint, 0, 0);
    pen.drawImage(layer, 0, 0, image.width, image.height);
    row(name, count / (mask.width * mask.height), { swatch: colour(index), share: true });
  });
}

function boxes(pen, all, classes, threshold) {
  const size = Math.max(image.width, image.height) / 45;
  [pen.lineWidth, pen.font, pen.textBaseline] = [size / 6, `${size}px system-ui, sans-serif`, "bottom"];
  const shown = all.filter((box) => box.score >= threshold);
  for (const { box: [x1, y1, x2, y2], score, label } of shown) {
    const hue = colour(classes.indexOf(label)), text = `${label} ${score.toFixed(2)}`;
    pen.strokeStyle = hue;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const top = Math.max(y1, size * 1.2);
    pen.fillStyle = "#000b";
    pen.fillRect(x1, top - size * 1.2, pen.measureText(text).width + size / 2, size * 1.2);
    pen.fillStyle = hue;
    pen.fillText(text, x1 + size / 4, top);
    row(label, score, { swatch: hue });
  }
  if (!shown.length) row(`No box of at least ${threshold.toFixed(2)}`);
}

function points(pen, all, classes, threshold) {
  classes.forEach((name, index) => {
    const [x, y, score] = all[name];
    if (score >= threshold) {
      pen.fillStyle = colour(index);
      pen.beginPath();
      pen.arc(x, y, Math.max(image.width, image.height) / 100, 0, 2 * Math.PI);
      pen.fill();
    }
    row(name, score, { swatch: colour(index), threshold });
  });
}

function row(name, number, { swatch, bar, threshold = 0, share = false } = {}) {
  const item = document.createElement("li"), line = document.createElement("div");
  line.className = "row";
  if (swatch) part(line, "i", "", "swatch").style.background = swatch;
  part(line, "span", name);
  const text = share ? `${(100 * number).toFixed(1)} % of the image` : number?.toFixed(3);
  if (number !== undefined) part(line, "span", text, "number");
  item.append(line);
  if (bar !== undefined) part(part(item, "div", "", "bar"), "i", "").style.width = `${100 * bar}%`;
  if (number < threshold) item.className = "below";
  $("rows").append(item);
}

function part(parent, tag, text, name = "") {
  const made = document.createElement(tag);
  [made.textContent, made.className] = [text, name];
  parent.append(made);
  return made;
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

$("file").addEventListener("change", (event) => event.target.files[0] && look(event.target.files[0]));
$("task").addEventListener("change", draw);
$("threshold").addEventListener("input", () => {
  $("shown").textContent = Number($("threshold").value).toFixed(2);
  draw();
});
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) look(event.dataTransfer.files[0]);
  });
begin();
