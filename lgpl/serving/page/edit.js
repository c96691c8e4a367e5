// Part of an image is painted over, to be drawn anew. Both canvases have the model's pixels.

const [section, picture, mask, brush, hint] = [
  "editor", "picture", "mask", "brush", "hint",
].map((id) => document.getElementById(id));
const OPAQUE = 128; // of 255: from here on the server takes a pixel for painted
const HINTS = {
  any: "Paint over what is to be drawn anew; everything else stays.",
  tail: "Paint over what is to be drawn anew. This model draws row after row from the top left, so "
    + "everything that follows is drawn anew, too.",
};

let model; // the server's description of it
let pointer = null; // the mouse or finger that paints, while it does
let last = null; // where it was

export function prepare(description) {
  model = description;
  hint.textContent = HINTS[model.masks];
  for (const canvas of [picture, mask]) [canvas.width, canvas.height] = [model.width, model.height];
}

// Show an image or a bitmap, cut to the model's shape.
export function open(image) {
  const [width, height] = [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];
  const scale = Math.max(model.width / width, model.height / height);
  const context = picture.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, model.width, model.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(
    image, (model.width - width * scale) / 2, (model.height - height * scale) / 2,
    width * scale, height * scale,
  );
  clear();
  section.hidden = false;
  section.scrollIntoView({ block: "nearest" });
}

// The files of an edit; null where nothing is painted.
export async function files() {
  if (painted().next().done) return null;
  const hole = document.createElement("canvas");
  [hole.width, hole.height] = [mask.width, mask.height];
  const context = hole.getContext("2d");
  context.fillRect(0, 0, hole.width, hole.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(mask, 0, 0);
  return { image: await png(picture), mask: await png(hole) };
}

function png(canvas) {
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

function clear() {
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
}

function paint(event) {
  const box = mask.getBoundingClientRect();
  const x = (event.clientX - box.left) * mask.width / box.width;
  const y = (event.clientY - box.top) * mask.height / box.height;
  const context = mask.getContext("2d", { willReadFrequently: true });
  context.strokeStyle = context.fillStyle = getComputedStyle(mask).color;
  context.lineWidth = Math.max(1, Number(brush.value) / 100 * mask.width);
  context.beginPath();
  context.moveTo(...(last ?? [x, y]));
  context.lineTo(x, y);
  context.stroke();
  context.beginPath();
  context.arc(x, y, context.lineWidth / 2, 0, 2 * Math.PI); // its end, or a dot where it began
  context.fill();
  last = [x, y];
  if (model.masks === "tail") grow(context);
}

// Indices of the painted pixels, in raster order.
function* painted() {
  const { data } = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
  for (let i = 0; i < data.length / 4; i += 1) if (data[4 * i + 3] >= OPAQUE) yield i;
}

// Paint all codes that follow the first that is painted.
function grow(context) {
  const [width, height] = [mask.width / model.columns, mask.height / model.rows]; // of a code
  let first = Infinity;
  for (const i of painted()) {
    const [x, y] = [i % mask.width, Math.floor(i / mask.width)];
    first = Math.min(first, Math.floor(y / height) * model.columns + Math.floor(x / width));
  }
  if (first === Infinity) return;
  const [row, column] = [Math.floor(first / model.columns), first % model.columns];
  context.fillRect(column * width, row * height, mask.width, height);
  context.fillRect(0, (row + 1) * height, mask.width, mask.height);
}

mask.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  if (pointer !== null) return;
  mask.setPointerCapture(event.pointerId);
  [pointer, last] = [event.pointerId, null];
  paint(event);
});
mask.addEventListener("pointermove", (event) => {
  if (event.pointerId === pointer) paint(event);
});
mask.addEventListener("lostpointercapture", (event) => {
  if (event.pointerId === pointer) pointer = null;
});
document.getElementById("clear").addEventListener("click", clear);
document.getElementById("close").addEventListener("click", () => { section.hidden = true; });
