"use strict";
// --- Answers from the server that the page came from: `opened`, `answered` and `explained` are what the page asks of whoever answers.

const TRIES = 30;
let token = "", unlocking = null;

async function ask(address, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const used = token;
    let response;
    try {
      response = await fetch(address, {...options, headers: used ? {Authorization: `Bearer ${used}`} : {}});
    } catch {
      throw new Error("the server cannot be reached");
    }
    if (response.status === 401) {
      if (token === used) await unlock();
      continue;
    }
    const answer = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
    if ((response.status === 429 || response.status === 503) && attempt < TRIES) {
      const pause = Number(response.headers.get("Retry-After")) || 1;
      await new Promise(done => setTimeout(done, 1000 * pause * (1 + Math.random() / 2)));
      continue;
    }
    if (!response.ok && !answer.predictions) throw new Error(answer.error || `the server answered ${response.status}`);
    return answer;
  }
}

function unlock() {
  unlocking ??= new Promise(done => {
    $("token").value = "";
    $("locked").showModal();
    $("locked").addEventListener("close", () => { token = $("token").value.trim(); unlocking = null; done(); }, {once: true});
  });
  return unlocking;
}

async function opened(tell) {
  let found = await ask("models");
  while (!found.models.every(model => model.ready)) {
    tell("The model is being loaded …");
    await new Promise(done => setTimeout(done, 1000));
    found = await ask("models");
  }
  return {models: found.models, bytes: found.limits.bytes};
}

function form(row) {
  const made = new FormData();
  made.append("image", row.file, row.file.name);
  return {method: "POST", body: made};
}

async function answered(row) {
  return (await ask(`predict?model=${encodeURIComponent(row.model)}`, form(row))).predictions[0];
}

async function explained(row, name, rival) {
  let asked = `explain?model=${encodeURIComponent(row.model)}&label=${encodeURIComponent(name)}`;
  if (rival !== undefined) asked += `&against=${encodeURIComponent(rival)}`;
  return ask(asked, form(row));
}

