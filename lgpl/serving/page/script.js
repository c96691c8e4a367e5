// The page over the server's own API: one stream for each image, so that all grow at once.

import * as editor from "./edit.js";

// Fields that go out as they are.
const NUMBERS = ["guidance", "temperature", "top_k", "top_p", "steps"];
const HISTORY = "lgpl.requests";
const KEPT = 24; // entries of the history
const THUMBNAIL = 96; // pixels
const SMALL = 128; // pixels up to which an image is enlarged with sharp pixels

const [form, drawButton, cancelButton, images, status] = [
  "form", "draw", "cancel", "images", "status",
].map((id) => document.getElementById(id));
const fields = form.elements;

let model; // the server's description of its model
let running = null; // AbortController of the running requests; null without one

class Refusal extends Error {
  constructor(message, field = null, status = 0) {
    super(message);
    this.field = field;
    this.status = status;
  }
}

async function start() {
  const answer = await fetch("page/model");
  if (!answer.ok) throw new Refusal("The server did not describe its model.");
  model = await answer.json();
  document.title = `lgpl: ${model.name}`;
  document.getElementById("model").textContent =
    `${model.name} · ${model.width} × ${model.height} pixels`;
  document.documentElement.style.setProperty("--shape", `${model.width} / ${model.height}`);
  fields.n.max = model.images;
  const wanted = model.defaults.temperature > 0 ? fields.n.value : 1; // or all seeds draw the same
  fields.n.value = Math.min(wanted, model.images);
  document.body.classList.toggle("small", model.width <= SMALL);
  if (model.masks !== "none") {
    editor.prepare(model);
    document.getElementById("own").hidden = false;
  }
  fields.prompt.maxLength = Math.min(model.prompt, model.longest ?? Infinity);
  document.getElementById("asks").textContent = model.label;
  if (model.is_number) fields.prompt.inputMode = "numeric";
  document.getElementById("examples").append(
    ...model.examples.map((example) => new Option(example, example)),
  );
  for (const name of NUMBERS) fields[name].value = model.defaults[name];
  // Left empty, since a small edit has fewer codes than the server's steps of a whole image.
  fields.steps.value = "";
  fields.steps.placeholder = model.defaults.steps ?? fields.steps.placeholder;
  document.getElementById("steps").hidden = model.steps === null;
  fields.steps.max = model.steps;
  showExample();
  fields.token.value = sessionStorage.getItem("lgpl.token") ?? "";
  showHistory();
}

// An empty page offers something to draw, where the model's condition knows what it understands.
function showExample() {
  const example = model.examples[0] ?? (model.is_number ? "0" : undefined);
  document.getElementById("start").hidden = example === undefined || images.hasChildNodes();
  document.getElementById("example").textContent = example ?? "";
}

// Read the form; throw a Refusal that names a wrong field.
function read() {
  const request = { prompt: fields.prompt.value.trim() };
  if (!request.prompt) throw new Refusal("Say what to show.", "prompt");
  for (const name of [...NUMBERS, "n", "seed"]) {
    const input = fields[name];
    if (input.validity.badInput) throw new Refusal(`${name} must be a number.`, name);
    if (input.value !== "") request[name] = Number(input.value);
  }
  request.n ??= 1;
  if (!Number.isInteger(request.n) || request.n < 1 || request.n > model.images) {
    throw new Refusal(`n must be a whole number from 1 to ${model.images}, got ${request.n}.`, "n");
  }
  request.seed ??= randomSeed();
  if (!Number.isSafeInteger(request.seed + request.n) || request.seed < 0) {
    const most = Number.MAX_SAFE_INTEGER - request.n;
    throw new Refusal(`seed must be a whole number from 0 to ${most}, got ${request.seed}.`, "seed");
  }
  return request;
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

// Draw new images, or with `files` part of one anew.
async function draw(files = null) {
  showError(null);
  let request;
  try {
    request = read();
  } catch (refusal) {
    return showError(refusal);
  }
  busy(new AbortController());
  images.replaceChildren();
  const frames = Array.from({ length: request.n }, (_, i) => (
    new Frame(request, request.seed + i, files)
  ));
  const complete = () => frames.filter((frame) => frame.isComplete);
  const count = () => { status.textContent = `${complete().length} of ${request.n} drawn`; };
  count();
  showExample();
  await Promise.all(frames.map(async (frame) => {
    try {
      await frame.draw(running.signal);
      count();
    } catch (error) { // the other images continue
      frame.element.remove();
      if (!running.signal.aborted) showError(error);
    }
  }));
  if (!complete().length) status.textContent = ""; // nothing is on its way any more
  else if (!files) remember(request, complete()[0].image); // an edit needs its image, too
  showExample();
  busy(null);
}

// Show one of the two buttons and move the focus along.
function busy(controller) {
  running = controller;
  const [shown, hidden] = running ? [cancelButton, drawButton] : [drawButton, cancelButton];
  const focused = document.activeElement === hidden;
  shown.hidden = false;
  hidden.hidden = true;
  if (focused) shown.focus();
  images.setAttribute("aria-busy", running !== null);
  document.getElementById("anew").disabled = running !== null;
}

function showError(refusal) {
  const alert = document.getElementById("error");
  alert.hidden = refusal === null;
  alert.textContent = refusal?.message ?? "";
  form.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  const unauthorized = refusal?.status === 401;
  if (unauthorized) document.getElementById("token").hidden = false;
  const input = fields[unauthorized ? "token" : refusal?.field];
  if (!input) return;
  input.closest("details")?.setAttribute("open", "");
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

// One image on the page, from its first preview to its download.
class Frame {
  constructor(request, seed, files) {
    this.request = request;
    this.seed = seed;
    this.files = files;
    this.isComplete = false;
    this.element = document.createElement("figure");
    this.blank = document.createElement("div");
    this.blank.className = "blank";
    this.progress = document.createElement("progress");
    this.progress.max = model.partial + 1;
    this.progress.value = 0;
    this.progress.setAttribute("aria-label", `Image of seed ${seed}`);
    this.element.append(this.blank, this.progress);
    images.append(this.element);
  }

  async draw(signal) {
    const { n, ...body } = this.request;
    Object.assign(body, { seed: this.seed, stream: true, partial_images: model.partial });
    const answer = await post(body, this.files, signal);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Refusal(event.error.message, event.error.param);
      await this.show(event.b64_json);
      if (event.type.endsWith(".completed")) return this.finish();
      this.progress.value = event.partial_image_index + 1;
    }
    throw new Refusal("The connection ended before the image was complete.");
  }

  async show(base64) {
    const image = new Image();
    image.src = `data:image/png;base64,${base64}`;
    image.alt = `${this.request.prompt}, seed ${this.seed}`;
    await image.decode();
    (this.image ?? this.blank).replaceWith(image);
    this.image = image;
  }

  finish() {
    this.isComplete = true;
    const caption = document.createElement("figcaption");
    const link = document.createElement("a");
    const name = this.request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
    link.href = this.image.src;
    link.download = `${name}-${this.seed}.png`;
    link.textContent = "Download";
    link.setAttribute("aria-label", `Download the image of seed ${this.seed}`);
    caption.append(`seed ${this.seed}`);
    if (model.masks !== "none") caption.append(this.editButton());
    caption.append(link);
    this.progress.replaceWith(caption);
  }

  editButton() {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Edit";
    button.setAttribute("aria-label", `Edit the image of seed ${this.seed}`);
    button.addEventListener("click", () => editor.open(this.image));
    return button;
  }
}

async function post(body, files, signal) {
  const headers = files ? {} : { "Content-Type": "application/json" }; // a form says its own
  if (fields.token.value) { // a header holds bytes: those of UTF-8
    const bytes = new TextEncoder().encode(fields.token.value);
    headers.Authorization = `Bearer ${String.fromCharCode(...bytes)}`;
  }
  sessionStorage.setItem("lgpl.token", fields.token.value);
  const path = `v1/images/${files ? "edits" : "generations"}`;
  const content = files ? formOf({ ...body, ...files }) : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({})); // a proxy may answer in its own way
  const message = error?.message ?? `The server answers ${answer.status}.`;
  throw new Refusal(message, error?.param, answer.status);
}

function formOf(entries) {
  const made = new FormData();
  for (const [name, value] of Object.entries(entries)) made.append(name, value);
  return made;
}

// The data of server-sent events, parsed.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true })); // the connection ended
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const event of parts) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice("data: ".length));
    }
  }
}

function readHistory() {
  try {
    return JSON.parse(localStorage.getItem(HISTORY)) ?? [];
  } catch {
    return [];
  }
}

function remember(request, image) {
  const canvas = document.createElement("canvas");
  const scale = THUMBNAIL / Math.max(model.width, model.height);
  [canvas.width, canvas.height] = [model.width * scale, model.height * scale];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  let entries = [{ request, thumbnail: canvas.toDataURL() }, ...readHistory()].slice(0, KEPT);
  while (entries.length) {
    try {
      localStorage.setItem(HISTORY, JSON.stringify(entries));
      break;
    } catch {
      entries = entries.slice(0, -1); // the browser's storage is full
    }
  }
  showHistory();
}

function showHistory() {
  const entries = readHistory();
  document.getElementById("before").hidden = entries.length === 0;
  document.getElementById("history").replaceChildren(
    ...entries.map(({ request, thumbnail }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const image = new Image();
      image.src = thumbnail;
      image.alt = "";
      const text = document.createElement("span");
      const title = document.createElement("strong");
      title.textContent = request.prompt;
      const detail = document.createElement("small");
      detail.textContent = `guidance ${request.guidance}, seed ${request.seed}, ${request.n} ×`;
      text.append(title, detail);
      button.type = "button";
      button.append(image, text);
      button.addEventListener("click", () => restore(request));
      item.append(button);
      return item;
    }),
  );
}

function restore(request) {
  for (const name of ["prompt", "n", "seed", ...NUMBERS]) fields[name].value = request[name] ?? "";
  if (model.steps === null) fields.steps.value = ""; // it was another model's
  // The history keeps a thumbnail only; the same seed draws the same images.
  status.textContent = "Draw shows this drawing again: its prompt, seed and settings are filled in.";
  fields.prompt.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (model && !running) draw();
});
cancelButton.addEventListener("click", () => running.abort());
document.getElementById("new-seed").addEventListener("click", () => {
  fields.seed.value = randomSeed();
});
document.getElementById("example").addEventListener("click", (event) => {
  fields.prompt.value = event.target.textContent;
  if (!running) draw();
});
document.getElementById("forget").addEventListener("click", () => {
  localStorage.removeItem(HISTORY);
  showHistory();
});
document.getElementById("anew").addEventListener("click", async () => {
  const files = await editor.files();
  if (!files) showError(new Refusal("Paint over what is to be drawn anew."));
  else if (!running) draw(files);
});
document.getElementById("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // or the same file could not be chosen again
  try {
    if (file) editor.open(await createImageBitmap(file));
  } catch {
    showError(new Refusal(`${file.name} cannot be read as an image.`));
  }
});
start().catch(showError);
