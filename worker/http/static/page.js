// The page works without this script: it is drawn by the worker. Here it is kept up to date, and a text is tried.
"use strict";

const EVERY_MS = 2000;
const now = document.getElementById("now");
const state = document.getElementById("state");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("page/now", { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(`the worker answers ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of [now, state]) {
      const drawn = fresh.getElementById(part.id);
      if (part.innerHTML !== drawn.innerHTML) part.replaceChildren(...drawn.childNodes);
    }
  } catch (error) {
    const pill = document.createElement("span");
    pill.className = "pill bad";
    pill.textContent = "no answer";
    pill.title = String(error);
    state.replaceChildren(pill);
  }
}
setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);

const form = document.getElementById("try");
const output = document.getElementById("answer");
const button = form && form.querySelector("button");

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function bar(score) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 100 12");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("aria-hidden", "true");
  for (const [kind, width] of [["ground", 100], ["part", 100 * score]]) {
    const part = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    part.setAttribute("class", kind);
    part.setAttribute("width", String(width));
    part.setAttribute("height", "12");
    part.setAttribute("rx", "3");
    made.append(part);
  }
  return made;
}

// Places are counted in code points, as Python and Avro's readers count them; a string here is UTF-16.
function highlighted(text, spans) {
  const letters = Array.from(text);
  const shown = element("p", undefined, { class: "text" });
  let at = 0;
  for (const { start, end } of spans.slice().sort((a, b) => a.start - b.start)) {
    if (start < at) continue;
    shown.append(letters.slice(at, start).join(""), element("mark", letters.slice(start, end).join("")));
    at = end;
  }
  shown.append(letters.slice(at).join(""));
  return shown;
}

function drawn(text, result) {
  const labels = result.outcome.labels;
  const parts = [];
  const spans = labels.length ? labels[0].evidence || [] : [];
  if (spans.length) parts.push(highlighted(text, spans));
  if (!labels.length) parts.push(element("p", "No label reaches the threshold.", { class: "empty" }));
  const table = element("table");
  const head = element("tr");
  const calibrated = labels.some((found) => typeof found.calibrated === "number");
  head.append(element("th", "label", { scope: "col" }), element("th", "", { scope: "col", "aria-hidden": "true" }));
  for (const name of calibrated ? ["calibrated", "score"] : ["score"]) {
    head.append(element("th", name, { scope: "col", class: "number" }));
  }
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  for (const [rank, found] of labels.entries()) {
    const row = element("tr", undefined, rank ? {} : { class: "first" });
    const cell = element("td", undefined, { class: "bar" });
    const probable = found.calibrated ?? found.score;
    cell.append(bar(probable));
    const path = (found.path || []).map((step) => step.label).join(" › ");
    row.append(element("th", path || found.label, { scope: "row" }), cell);
    if (calibrated) row.append(element("td", found.calibrated?.toFixed(3) ?? "–", { class: "number" }));
    row.append(element("td", found.score.toFixed(3), { class: "number" }));
    body.append(row);
  }
  table.append(top, body);
  if (labels.length) parts.push(table);
  const notes = [];
  if (result.outcome.multi_label) notes.push("Each label by itself: the scores need not add up to 1.");
  if (result.truncated) notes.push("The text is longer than the model's window: its end was not read.");
  for (const note of notes) parts.push(element("p", note, { class: "more" }));
  return parts;
}

function asked() {
  const fields = new FormData(form);
  const wanted = { text: fields.get("text"), multi_label: fields.get("multi_label") === "on" };
  const set = fields.get("label_set");
  if (set) wanted.label_set = set;
  else wanted.labels = fields.get("labels").split(/[,\n]/).map((label) => label.trim()).filter(Boolean);
  const template = fields.get("hypothesis_template").trim();
  if (template) wanted.hypothesis_template = template;
  const evidence = Number(fields.get("evidence") || 0);
  if (evidence) wanted.evidence = evidence;
  return wanted;
}

if (form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    output.setAttribute("aria-busy", "true");
    const wanted = asked();
    try {
      const answer = await fetch("v1/classify", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(wanted),
      });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.detail);
      output.replaceChildren(...drawn(wanted.text, found));
    } catch (error) {
      output.replaceChildren(element("p", error.message, { class: "failed" }));
    } finally {
      button.disabled = false;
      output.removeAttribute("aria-busy");
    }
  });
}
