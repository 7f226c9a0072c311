// From the server's answer to a picture: masks, boxes and points over the image.
import { css, rgb } from "./colours.js";

const TINT = 0.45; // how opaque a mask is
const TALLEST = 0.75; // of the window
const TEXT = 13; // pixels of the screen

// The answer with its PNGs unpacked: the picture, and of each mask its bytes.
export async function unpack({ image, preview, tasks, seconds }) {
  for (const task of Object.values(tasks))
    for (const [name, png] of Object.entries(task.masks ?? {})) {
      const mask = await loaded(png), { width, height } = mask;
      const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      pen.drawImage(mask, 0, 0);
      const pixels = pen.getImageData(0, 0, width, height).data;
      [task.width, task.height] = [width, height];
      const gray = (task.masks[name] = new Uint8Array(width * height));
      for (let at = 0; at < gray.length; at++) gray[at] = pixels[4 * at];
    }
  return { ...image, picture: await loaded(preview), tasks, seconds };
}

async function loaded(png) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${png}`;
  await picture.decode();
  return picture;
}

// Of each class which pixels are its own, and their share of the image; as MaskPrediction.masks:
// from the threshold on, or of exclusive classes where it is the most probable one.
export function members({ masks, names, exclusive, threshold }) {
  const planes = names.map((name) => masks[name]), count = planes[0].length;
  const best = exclusive && mostProbable(planes);
  const least = Math.max(1, Math.ceil(255 * threshold - 1e-9));
  return planes.map((plane, index) => {
    const own = new Uint8Array(count);
    let sum = 0;
    for (let at = 0; at < count; at++)
      sum += own[at] = best ? best[at] === index : plane[at] >= least;
    return { own, share: sum / count };
  });
}

// Of each pixel the class, or -1: the background, which has what the classes leave.
function mostProbable(planes) {
  return Int16Array.from(planes[0], (_, at) => {
    let left = 255, most = 0, best = -1;
    planes.forEach((plane, index) => {
      left -= plane[at];
      if (plane[at] > most) [most, best] = [plane[at], index];
    });
    return most > left ? best : -1;
  });
}

// As large as fits, in the screen's own pixels.
export function paint(canvas, { picture, width, height }, task) {
  const room = canvas.parentElement.clientWidth - 16; // its padding
  const scale = Math.min(room / width, (TALLEST * innerHeight) / height), sharp = devicePixelRatio;
  [canvas.width, canvas.height] = [width, height].map((side) =>
    Math.max(1, Math.round(side * scale * sharp)));
  [canvas.style.width, canvas.style.height] = [width, height].map((side) => `${side * scale}px`);
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!task) return;
  pen.scale(sharp, sharp); // pens count in the screen's pixels, positions times `scale`
  if (task.members) tints(pen, task, width * scale, height * scale);
  if (task.boxes) boxes(pen, task, scale);
  if (task.points) points(pen, task, scale);
}

function tints(pen, task, width, height) {
  task.members.forEach(({ own }, index) => {
    if (!task.visible[index]) return;
    const tint = new ImageData(task.width, task.height), [r, g, b] = rgb(index);
    const pixels = new DataView(tint.data.buffer);
    const colour = (r * 2 ** 24 + g * 2 ** 16 + b * 2 ** 8 + Math.round(255 * TINT)) >>> 0;
    for (let at = 0; at < own.length; at++) if (own[at]) pixels.setUint32(4 * at, colour);
    const layer = new OffscreenCanvas(task.width, task.height);
    layer.getContext("2d").putImageData(tint, 0, 0);
    pen.drawImage(layer, 0, 0, width, height);
  });
}

function boxes(pen, { boxes: all, names, threshold }, scale) {
  [pen.lineWidth, pen.font, pen.textBaseline] = [2, `${TEXT}px system-ui, sans-serif`, "bottom"];
  for (const { box, score, label } of all.filter((one) => one.score >= threshold)) {
    const [x1, y1, x2, y2] = box.map((side) => side * scale);
    const hue = css(names.indexOf(label)), text = `${label} ${score.toFixed(2)}`;
    pen.strokeStyle = hue;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const wide = pen.measureText(text).width + 6, edge = pen.canvas.width / devicePixelRatio;
    const left = Math.max(0, Math.min(x1, edge - wide)), bottom = Math.max(y1, TEXT + 4);
    pen.fillStyle = "#000b";
    pen.fillRect(left, bottom - TEXT - 4, wide, TEXT + 4);
    pen.fillStyle = hue;
    pen.fillText(text, left + 3, bottom - 1);
  }
}

function points(pen, { points: all, names, threshold }, scale) {
  names.forEach((name, index) => {
    const [x, y, score] = all[name];
    if (score < threshold) return;
    pen.fillStyle = css(index);
    pen.beginPath();
    pen.arc(x * scale, y * scale, 5, 0, 2 * Math.PI);
    pen.fill();
  });
}
