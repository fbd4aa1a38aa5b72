"use strict";
const $ = id => document.getElementById(id);
const AT_ONCE = 6, THUMBNAIL = 224, WITH_BOXES = 660;
let models = [], most = Infinity, rows = [], waiting = [], working = 0;

async function start() {
  try {
    const found = await opened(words => { $("about").textContent = words; });
    models = found.models;
    most = found.bytes;
  } catch (error) {
    $("about").textContent = `Something is wrong: ${error.message}.`;
    return;
  }
  for (const model of models) $("model").append(new Option(model.name));
  $("choice").hidden = models.length < 2;
  describe();
  pump();
}

const chosen = () => models.find(model => model.name === $("model").value);

const finds = row => models.find(model => model.name === row.model)?.task === "detection";

function describe() {
  const {name, classes, multi_label, task} = chosen(), count = classes.length.toLocaleString("en");
  const shown = classes.slice(0, 12).join(", ") + (classes.length > 12 ? ", …" : ".");
  if ($("hint")) $("hint").hidden = task === "detection";
  $("about").textContent = (task === "detection" ? `${name} says where objects are, of ${count} kinds: ${shown}` : `${name} knows ${count} classes: ${shown}`)
    + (multi_label ? " An image may have several of them, or none." : "");
}

// --- Images in

function add(files) {
  for (const file of files) {
    const item = element("li", "waiting"), row = {file, item, model: $("model").value};
    item.append(element("span", "picture", "…"), element("div", "name", file.name), element("div", "label", "waiting"));
    item.children[1].title = file.name;
    rows.push(row);
    waiting.push(row);
    $("list").append(item);
  }
  summarize();
  pump();
}

function pump() {
  if (!models.length) return;
  for (; working < AT_ONCE && waiting.length; working++) {
    const row = waiting.shift();
    look(row).finally(() => { working--; summarize(); pump(); });
  }
}

async function look(row) {
  row.model ||= models[0].name;
  row.pictured = picture(row);
  if (row.file.size > most) return show(row, {error: `it has more than ${most.toLocaleString("en")} bytes`});
  try {
    show(row, await answered(row));
  } catch (error) {
    show(row, {error: error.message});
  }
}

async function picture(row) {
  const old = row.item.querySelector(".picture");
  try {
    let bitmap = await createImageBitmap(row.file);
    const longer = Math.max(bitmap.width, bitmap.height), boxes = finds(row);
    const scale = boxes ? WITH_BOXES / longer : Math.min(1, THUMBNAIL / longer);  // small ones enlarged, so that boxes are thin on them
    const canvas = document.createElement("canvas");
    canvas.className = !boxes && scale === 1 && Math.max(bitmap.width, bitmap.height) < 64 ? "picture tiny" : "picture";
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    old.replaceWith(canvas);
  } catch {
    old.textContent = "no preview";  // a format that this browser does not know
  }
}

const entries = reader => new Promise((done, failed) => reader.readEntries(done, failed));

async function within(entry, found) {
  if (entry.isFile) {
    found.push(await new Promise((done, failed) => entry.file(done, failed)));
  } else {
    const reader = entry.createReader();
    for (let some = await entries(reader); some.length; some = await entries(reader))
      for (const each of some) await within(each, found);
  }
  return found;
}

async function dropped(transfer) {
  const tops = [...transfer.items].filter(item => item.kind === "file").map(item => item.webkitGetAsEntry?.());
  if (!tops.some(entry => entry?.isDirectory)) return add(transfer.files);
  const found = [];
  for (const entry of tops) if (entry) await within(entry, found).catch(() => {});
  add(found.filter(file => !file.name.startsWith(".")).sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true})));
}

// --- Answers out

function element(tag, kind, text) {
  const made = document.createElement(tag);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

const percent = share => `${(100 * share).toFixed(1)}%`;

function show(row, answer) {
  row.answer = answer;
  const item = row.item, label = item.querySelector(".label");
  item.className = answer.error ? "wrong" : "";
  if (answer.error) {
    label.textContent = answer.error;
    return;
  }
  if (answer.objects) return showObjects(row, answer.objects, label);
  const given = answer.labels ?? [answer.label];
  label.textContent = given.join(", ") || "none of its classes";
  const list = element("ol", "top");
  for (const one of answer.top) {
    const {label: name, probability} = one;
    const bar = element("li", answer.labels?.includes(name) ? "given" : ""), line = element(explained ? "button" : "div", "share");
    line.append(element("span", "", name), element("b", "", percent(probability)));
    if (explained) {
      line.type = "button";
      line.title = `${name}: where?`;
      line.addEventListener("click", () => explain(row, apart(one), line));
    }
    bar.append(line);
    bar.style.setProperty("--share", probability);
    list.append(bar);
  }
  item.append(list);
}

// --- Of a detector: boxes on the picture, and a line for each kind.

function colour(row, label) {
  const place = models.find(model => model.name === row.model).classes.indexOf(label);
  return `hsl(${(210 + 137.5 * place) % 360} 85% 48%)`;
}

function showObjects(row, objects, label) {
  row.item.className = "objects";
  label.textContent = objects.length ? `${objects.length} object${objects.length === 1 ? "" : "s"}` : "nothing found";
  const kinds = new Map(), list = element("ol", "top");
  for (const {label: name, score} of objects) kinds.set(name, [...(kinds.get(name) ?? []), score]);
  for (const [name, scores] of kinds) {
    const bar = element("li", "kind"), line = element("div", "share"), best = percent(scores[0]), least = percent(scores.at(-1));
    line.append(element("span", "", `${scores.length} × ${name}`), element("b", "", best === least ? best : `${best} to ${least}`));
    line.title = "their scores";
    bar.append(line);
    bar.style.setProperty("--share", scores[0]);
    bar.style.setProperty("--kind", colour(row, name));
    list.append(bar);
  }
  row.item.append(list);
  row.pictured.then(() => outline(row));
}

function outline(row) {
  const canvas = row.item.querySelector(".picture"), {objects, width, height} = row.answer;
  if (canvas.tagName !== "CANVAS") return;  // no preview
  const pen = canvas.getContext("2d"), across = canvas.width / width, down = canvas.height / height;
  for (const [line, ink] of [[5, () => "#fff9"], [2.5, name => colour(row, name)]]) {
    pen.lineWidth = line;
    for (const {label, box: [left, top, right, bottom]} of objects.toReversed()) {  // the best one on top
      pen.strokeStyle = ink(label);
      pen.strokeRect(left * across, top * down, (right - left) * across, (bottom - top) * down);
    }
  }
}

const apart = one => one.class ?? one.label;  // several classes may have one name

// Which parts of the image speak for a class, in the thumbnail's place; a second click brings that back. Where only one class is given, rather
// than for the most probable other one: what speaks for both decides nothing, and it is most of the image.
async function explain(row, name, button) {
  const own = button.getAttribute("aria-pressed") === "true", old = row.item.querySelector(".picture");
  for (const other of row.item.querySelectorAll("[aria-pressed]")) other.removeAttribute("aria-pressed");
  if (own) return old.replaceWith(row.thumbnail);
  if (old.tagName !== "IMG") row.thumbnail = old;
  button.setAttribute("aria-pressed", "true");
  try {
    const rival = row.answer.labels ? undefined : row.answer.top.map(apart).find(other => other !== name);
    const answer = await explained(row, name, rival);
    if (button.getAttribute("aria-pressed") !== "true") return;
    const image = element("img", "picture");
    image.src = `data:image/png;base64,${answer.png}`;
    image.alt = image.title = `Orange speaks for ${name}, blue ${rival === undefined ? "against it" : `for ${rival}`}` + (answer.exact ? "." : ", by the gradient.");
    row.item.querySelector(".picture").replaceWith(image);
  } catch (error) {
    button.removeAttribute("aria-pressed");
    button.title = error.message;
    row.item.querySelector(".picture").replaceWith(row.thumbnail);
  }
}

function summarize() {
  const done = rows.filter(row => row.answer), wrong = done.filter(row => row.answer.error).length;
  $("results").hidden = !rows.length;
  $("summary").textContent = (done.length < rows.length ? `${done.length} of ${rows.length} images` : `${rows.length} image${rows.length === 1 ? "" : "s"}`)
    + (wrong ? `, ${wrong} without an answer` : "");
  $("csv").disabled = !done.length;
  const counts = new Map();
  for (const {answer} of done) if (!answer.error)
    for (const label of answer.objects?.map(one => one.label) ?? answer.labels ?? [answer.label]) counts.set(label, (counts.get(label) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  $("counts").textContent = rows.length < 2 ? "" : sorted.slice(0, 20).map(([label, n]) => `${label}: ${n}`).join(" · ") + (sorted.length > 20 ? " · …" : "");
}

// As `bit predict --format csv` writes it.

function number(value) {  // as C's %.6g
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(5).split("e"), exponent = Number(power);
  if (exponent >= -4 && exponent < 6) return String(Number(value.toFixed(5 - exponent)));
  const sign = exponent < 0 ? "-" : "+";
  return `${Number(digits)}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

const HIDDEN = /[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"};

function escaped(character) {
  const code = character.charCodeAt(0);
  return NAMED[character] ?? (code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`);
}

function cell(text) {
  const formula = /^[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(text);
  return (formula ? "'" : "") + text.replace(HIDDEN, escaped);
}

const quoted = text => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;

function table() {
  const done = rows.filter(row => row.answer && !finds(row)), good = done.filter(row => !row.answer.error);
  const several = good.some(row => row.answer.labels), many = new Set(done.map(row => row.model)).size > 1;
  const k = Math.max(1, ...good.map(row => row.answer.top.length));
  const head = ["image", ...(many ? ["model"] : []), ...(several ? ["labels"] : []), "label", "probability"];
  for (let i = 2; i <= k; i++) head.push(`label_${i}`, `probability_${i}`);
  const lines = [[...head, "error"]];
  for (const {file, answer, model} of done) {
    const top = (answer.top ?? []).flatMap(({label, probability}) => [cell(label), number(probability)]);
    while (top.length < 2 * k) top.push("");
    const labels = several ? [cell((answer.labels ?? []).join("|"))] : [];
    lines.push([cell(file.name), ...(many ? [cell(model)] : []), ...labels, ...top, cell(answer.error ?? "")]);
  }
  return lines.map(line => line.map(quoted).join(",") + "\n").join("");
}

// As `bit detect predict --format csv` writes it.

function tableOfObjects() {
  const done = rows.filter(row => row.answer && finds(row)), many = new Set(done.map(row => row.model)).size > 1;
  const lines = [["image", ...(many ? ["model"] : []), "label", "score", "left", "top", "right", "bottom", "error"]];
  for (const {file, answer, model} of done) {
    const start = [cell(file.name), ...(many ? [cell(model)] : [])];
    if (answer.error) lines.push([...start, "", "", "", "", "", "", cell(answer.error)]);
    for (const {label, score, box} of answer.objects ?? [])
      lines.push([...start, cell(label), score.toFixed(4), ...box.map(side => side.toFixed(2)), ""]);
  }
  return lines.map(line => line.map(quoted).join(",") + "\n").join("");
}

function save() {
  const done = rows.filter(row => row.answer);
  if (done.some(finds)) download("objects.csv", tableOfObjects());
  if (!done.every(finds)) download("predictions.csv", table());
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- The camera

let stream = null;

function darken() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
}

async function shoot() {
  const video = $("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const photo = await new Promise(done => canvas.toBlob(done, "image/jpeg", 0.95));
  if (photo) add([new File([photo], `photo-${new Date().toTimeString().slice(0, 8).replaceAll(":", "-")}.jpg`, {type: "image/jpeg"})]);
}

async function open() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment", width: {ideal: 1920}}});
    $("video").srcObject = stream;
    $("viewfinder").showModal();
  } catch (error) {
    $("about").textContent = `The camera cannot be used: ${error.message}.`;
  }
}

// --- Wires

$("files").addEventListener("change", event => { add(event.target.files); event.target.value = ""; });
$("shot").addEventListener("change", event => { add(event.target.files); event.target.value = ""; });
$("model").addEventListener("change", describe);
$("csv").addEventListener("click", save);
$("clear").addEventListener("click", () => { rows = []; waiting = []; $("list").replaceChildren(); summarize(); });
$("camera").addEventListener("click", open);
$("shoot").addEventListener("click", shoot);
$("enough").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", darken);
if (!navigator.mediaDevices?.getUserMedia) {  // not over plain HTTP from another machine; a phone's own camera still does
  $("camera").hidden = true;
  $("snap").hidden = false;
}
document.addEventListener("paste", event => {
  if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); }
});
document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", event => { event.preventDefault(); $("drop").classList.remove("over"); dropped(event.dataTransfer); });
start();
