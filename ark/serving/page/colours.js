// Okabe and Ito's palette, as in every picture of Ark: told apart by colour-blind readers
const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF"];
const GOLDEN = 137.508; // degrees: each hue lies far from those before it
const LIGHT = [0.7, 0.5, 0.85]; // in turn, so that near hues differ in this

// [r, g, b], 0 to 255, of the class with this index
export function rgb(index) {
  if (index < PALETTE.length)
    return [1, 3, 5].map((at) => parseInt(PALETTE[index].slice(at, at + 2), 16));
  const light = LIGHT[index % LIGHT.length], reach = 0.8 * Math.min(light, 1 - light);
  return [0, 8, 4].map((turn) => {
    const at = (turn + (index * GOLDEN) / 30) % 12;
    return Math.round(255 * (light - reach * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  });
}

export const css = (index) => `rgb(${rgb(index).join(" ")})`;
