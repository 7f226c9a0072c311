// What the user does: an image comes in, the server answers, rows and picture show it.
import { css } from "./colours.js";
import { members, paint, unpack } from "./picture.js";

const $ = (id) => document.getElementById(id);
let model; // what /api/model says
let seen = null; // { picture, width, height, tasks } of the image that is shown
let waiting = new AbortController(); // of the request that is under way
const hidden = new Set(); // "task/class" that the user does not want to see

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is `ark serve` still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error ?? `the server answered ${response.status}`);
  return content;
}

async function begin() {
  model = await ask("/api/model");
  $("name").textContent = document.title = model.name;
  const license = model.license ? `, license ${model.license}` : "";
  $("about").textContent =
    `${model.backbone}, ${model.which}, ${model.image_size} × ${model.image_size} pixels${license}`;
  $("note").textContent = model.note;
  for (const key of Object.keys(model.tasks)) $("task").add(new Option(key, key));
  if (!$("task").length) say("This model has no heads: ark.load(...).features gives what it sees.");
  $("own-line").hidden = !model.tasks[$("task").value]?.thresholds;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// of several images that come in a hurry the last one is shown
async function look(file) {
  waiting.abort();
  const mine = (waiting = new AbortController());
  $("drop").ariaBusy = "true";
  say(`${file.name}: looking …`);
  try {
    const found = await predictions(file, mine.signal);
    if (mine !== waiting) return;
    seen = found;
    const turned = found.turned ? ", turned upright" : "";
    say(`${file.name}: ${found.width} × ${found.height} pixels${turned}, ${found.seconds} s`);
    show();
  } catch (error) {
    if (mine !== waiting) return;
    clear(); // nobody takes an older image's findings for this file's
    say(`${file.name}: ${error.message}`, true);
  }
  $("drop").ariaBusy = "false";
}

async function predictions(file, signal) {
  const limit = model.megabytes;
  if (file.size > limit * 1e6)
    throw new Error(`the file is larger than ${limit} MB; \`ark serve --megabytes\` raises it`);
  const body = await file.arrayBuffer().catch(() => {
    throw new Error("cannot be read; is it a folder?");
  });
  return unpack(await ask("/api/predict?preview=true", { method: "POST", body, signal }));
}

function clear() {
  seen = null;
  $("rows").replaceChildren();
  $("picture").hidden = true;
  $("drop").classList.remove("full");
}

// the chosen task of the image, or nothing
function chosen() {
  const key = $("task").value;
  if (!seen || !key) return null;
  const told = model.tasks[key], threshold = Number($("threshold").value);
  const own = told.thresholds && $("own").checked;
  const visible = told.classes.map((name) => !hidden.has(`${key}/${name}`));
  return { ...seen.tasks[key], key, names: told.classes, visible, threshold,
    thresholds: told.classes.map((_, index) => (own ? told.thresholds[index] : threshold)) };
}

function show() {
  const task = chosen();
  $("own-line").hidden = !model.tasks[$("task").value]?.thresholds;
  if (!seen) return;
  $("picture").hidden = false;
  $("drop").classList.add("full");
  if (task) {
    if (task.masks) task.members = members(task);
    $("threshold").disabled = Boolean(task.values || task.exclusive || oneOf(task));
    $("rows").replaceChildren(...rows(task));
  }
  paint($("picture"), seen, task);
  $("picture").ariaLabel = task ? `${task.key}: ${$("rows").innerText}` : "the image";
}

// the picture alone: the rows keep the focus
function repaint() {
  const task = chosen();
  if (task?.masks) task.members = members(task);
  if (seen) paint($("picture"), seen, task);
}

const oneOf = ({ kind }) => kind === "multiclass" || kind === "ordinal";

function rows(task) {
  if (task.masks) return task.names.map((name, index) => maskRow(task, name, index));
  if (task.boxes) return boxRows(task);
  if (task.values) return task.names.map((name) => row(name, task.values[name].toFixed(3)));
  if (task.points)
    return task.names.map((name, index) => {
      const score = task.points[name][2];
      return row(name, score.toFixed(3), { index, below: score < task.threshold });
    });
  const most = Math.max(...Object.values(task.classes));
  return task.names.map((name, index) => {
    const bar = task.classes[name], mark = oneOf(task) ? undefined : task.thresholds[index];
    return row(name, bar.toFixed(3), { bar, mark, below: bar < (mark ?? most) });
  });
}

function maskRow(task, name, index) {
  const share = `${(100 * task.members[index].share).toFixed(1)} % of the image`;
  return row(name, share, { index, toggle: `${task.key}/${name}` });
}

function boxRows(task) {
  const shown = task.boxes.filter((box) => box.score >= task.threshold);
  if (!shown.length) return [row(`No box of at least ${task.threshold.toFixed(2)}`)];
  return shown.map(({ label, score }) =>
    row(label, score.toFixed(3), { index: task.names.indexOf(label) }));
}

// index: of the class, for its colour; toggle: the class is shown or hidden under this key;
// bar: a probability, and mark: its threshold; below: what is not found
function row(name, number, { index, toggle, bar, mark, below = false } = {}) {
  const item = document.createElement("li"), line = part(item, toggle ? "label" : "div", "", "row");
  if (toggle) line.append(checkbox(toggle));
  if (index !== undefined) part(line, "i", "", "swatch").style.background = css(index);
  part(line, "span", name);
  if (number !== undefined) part(line, "span", number, "number");
  if (bar !== undefined) {
    const track = part(item, "div", "", "bar");
    part(track, "i", "").style.width = `${100 * bar}%`;
    if (mark !== undefined) part(track, "b", "").style.left = `${100 * mark}%`;
  }
  item.classList.toggle("below", below);
  return item;
}

function checkbox(key) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox" });
  box.checked = !hidden.has(key);
  box.addEventListener("change", () => {
    hidden[box.checked ? "delete" : "add"](key);
    repaint();
  });
  return box;
}

function part(parent, tag, text, name = "") {
  const made = document.createElement(tag);
  [made.textContent, made.className] = [text, name];
  parent.append(made);
  return made;
}

function take(files) {
  if (!files.length) return say("No file was dropped; drop an image's file, or choose one.", true);
  if (!model) return say("The server has not answered yet; load the page again.", true);
  look(files[0]);
}

$("file").addEventListener("change", (event) => {
  if (event.target.files.length) take([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
$("task").addEventListener("change", show);
$("own").addEventListener("change", show);
$("threshold").addEventListener("input", () => {
  $("shown").textContent = Number($("threshold").value).toFixed(2);
  $("own").checked = false;
  show();
});
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
addEventListener("resize", repaint);
begin().catch((error) => say(error.message, true));
