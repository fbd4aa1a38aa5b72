"use strict";
// The network in a browser: files in, answers out as the server gives them. Pixels become the network's input as in bigtransfer's data/images.py.

const STRIP = 1 << 20;  // pixels taken from the browser at a time
let card = null, ort = null, session = null, turn = Promise.resolve();

onmessage = ({data: {number, ...message}}) => {
  turn = turn.then(async () => {
    try {
      postMessage({number, answer: await (message.file ? answer(message.file) : open(message))});
    } catch (error) {
      postMessage({number, error: error.message || String(error)});
    }
  });
};

async function unpacked(text) {
  const bytes = new Uint8Array(text.length / 4 * 3 - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  for (let at = 0, to = 0; at < text.length; at += 1 << 20) {
    const part = atob(text.slice(at, at + (1 << 20)));
    for (let i = 0; i < part.length; i++) bytes[to++] = part.charCodeAt(i);
  }
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

async function open({card: given, library, binary, network}) {
  card = given;
  ort = await import(URL.createObjectURL(new Blob([await unpacked(library)], {type: "text/javascript"})));
  ort.env.wasm.numThreads = 1;  // more need a server that sets the page apart from others
  ort.env.wasm.wasmBinary = await unpacked(binary);
  session = await ort.InferenceSession.create(await unpacked(network), {executionProviders: ["wasm"]});
}

async function answer(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch {
    throw new Error("this browser cannot decode it");
  }
  let image;
  try {
    image = prepared(bitmap);
  } finally {
    bitmap.close();
  }
  const {size, channels} = card.input;
  const results = await session.run({image: new ort.Tensor("uint8", image, [1, channels, size, size])}, ["probabilities"]);
  const probabilities = results.probabilities.data;
  const sorted = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const found = sorted.slice(0, 5).map(i => ({label: card.classes[i], probability: probabilities[i]}));
  const labels = card.thresholds && sorted.filter(i => probabilities[i] >= card.thresholds[i]).map(i => card.classes[i]);
  return {image: file.name, ...(labels ? {labels} : {}), label: found[0].label, probability: found[0].probability, top: found};
}

// --- Pixels

// The network's input: uint8 planes, channel by channel.
function prepared(bitmap) {
  const {size, resized, mode, channels} = card.input;
  let height = resized, width = resized, top = 0, left = 0;
  if (mode === "aspect") {
    if (bitmap.height <= bitmap.width) width = Math.floor(resized * bitmap.width / bitmap.height);
    else height = Math.floor(resized * bitmap.height / bitmap.width);
    top = even((height - size) / 2);
    left = even((width - size) / 2);
  }
  const columns = filter(bitmap.width, width, left, size), rows = filter(bitmap.height, height, top, size);
  const halfway = narrowed(bitmap, columns, size, channels), result = new Uint8Array(channels * size * size);
  const across = size * channels;
  for (let y = 0; y < size; y++) {
    const {low, weights} = rows[y];
    for (let x = 0; x < across; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * halfway[(low + k) * across + x];
      result[(x % channels) * size * size + y * size + (x - x % channels) / channels] = rounded(sum);
    }
  }
  return result;
}

// Rows of the image, resized to `width` columns: channels side by side, 8 bits where the filter averages, as everywhere.
function narrowed(bitmap, columns, width, channels) {
  const deep = Math.max(1, Math.floor(STRIP / bitmap.width));
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(deep, bitmap.height));
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  if (!pen) throw new Error("it is too large for this browser");
  const halfway = new (card.input.antialias ? Uint8Array : Float32Array)(bitmap.height * width * channels);
  let to = 0;
  for (let top = 0; top < bitmap.height; top += deep) {
    const count = Math.min(deep, bitmap.height - top);
    pen.fillStyle = "#fff";  // behind what is transparent
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, top, bitmap.width, count, 0, 0, bitmap.width, count);
    const {data} = pen.getImageData(0, 0, bitmap.width, count);
    if (channels === 1) for (let i = 0; i < data.length; i += 4) data[i] = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 32768) >> 16;
    for (let y = 0; y < count; y++) {
      for (const {low, weights} of columns) {
        const at = (y * bitmap.width + low) * 4;
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let k = 0; k < weights.length; k++) sum += weights[k] * data[at + 4 * k + c];
          halfway[to++] = card.input.antialias ? rounded(sum) : sum;
        }
      }
    }
  }
  return halfway;
}

const rounded = value => Math.max(0, Math.min(255, Math.floor(value + 0.5)));

function even(value) {  // as Python rounds
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below & 1) : Math.round(value);
}

// Of `n` samples made `length`: for `count` results from `first` on, the first sample that each is made of, and the weights.
function filter(n, length, first, count) {
  const {interpolation, antialias, decoder} = card.input, scale = n / length, wide = antialias ? Math.max(scale, 1) : 1;
  const reach = interpolation === "bilinear" ? 1 : 2, found = [];
  let largest = 0;
  for (let i = 0; i < length; i++) {
    const centre = scale * (i + 0.5);
    const low = Math.max(0, Math.trunc(centre - reach * wide + 0.5)), high = Math.min(n, Math.trunc(centre + reach * wide + 0.5));
    const weights = [];
    for (let k = low; k < high; k++) weights.push(kernel(Math.abs(k - centre + 0.5) / wide, interpolation));
    const sum = weights.reduce((a, b) => a + b, 0);
    for (let k = 0; k < weights.length; k++) weights[k] /= sum;
    largest = Math.max(largest, ...weights);
    found.push({low, weights});
  }
  if (antialias && decoder === "fast") {  // whole numbers of 16 bits, as torch has them
    let bits = 0;
    while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
    for (const {weights} of found)
      for (let k = 0; k < weights.length; k++) weights[k] = Math.trunc(weights[k] * 2 ** bits + Math.sign(weights[k]) / 2) / 2 ** bits;
  }
  return found.slice(first, first + count);
}

function kernel(distance, interpolation) {
  if (interpolation === "bilinear") return distance < 1 ? 1 - distance : 0;
  if (distance <= 1) return (1.5 * distance - 2.5) * distance ** 2 + 1;
  return distance < 2 ? ((-0.5 * distance + 2.5) * distance - 4) * distance + 2 : 0;
}
