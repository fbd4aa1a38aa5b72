"use strict";
// --- Answers from this very file: the network and its runtime lie in it, and a worker computes, so that the page stays awake.

let worker = null;
const asked = new Map();

function order(message) {
  return new Promise((done, failed) => {
    const number = asked.size ? Math.max(...asked.keys()) + 1 : 0;
    asked.set(number, {done, failed});
    worker.postMessage({number, ...message});
  });
}

function content(name) {
  const place = $(name), text = place.textContent;
  place.remove();  // tens of megabytes
  return text;
}

async function opened(tell) {
  tell("The model is being loaded …");
  if (!window.WebAssembly || !window.DecompressionStream) throw new Error("this browser is too old (it has no WebAssembly, or no DecompressionStream)");
  const card = JSON.parse(content("card"));
  worker = new Worker(URL.createObjectURL(new Blob([content("worker")], {type: "text/javascript"})));
  worker.onmessage = ({data: {number, answer, error}}) => {
    const {done, failed} = asked.get(number);
    asked.delete(number);
    if (error === undefined) done(answer); else failed(new Error(error));
  };
  worker.onerror = event => {  // out of memory, for instance
    for (const {failed} of asked.values()) failed(new Error(event.message || "the browser ended the computation"));
    asked.clear();
  };
  await order({card, library: content("library"), binary: content("binary"), network: content("network")});
  return {models: [{name: card.name, classes: card.classes, multi_label: card.thresholds !== null}], bytes: Infinity};
}

const answered = row => order({file: row.file});

const explained = null;
