// One episode as a notebook shows it: of the report and of the live page.
// Everything in a record is hostile: it enters the page through `el` alone, as text nodes.
"use strict";

const byId = (id) => document.getElementById(id);
const LOOKS = {
  "correct": ["correct", "✓"], "wrong": ["wrong", "✗"], "no answer": ["none", "–"], "machine failure": ["machine", "!"],
  "not judged": ["none", "?"],
};
const HIGHLIGHTED_CHARS = 20000; // more code than this is shown plain: each colour is a node

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function withAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const words = (text) => text.replaceAll("_", " ");
const named = (text) => text || "none";
const plural = (count, noun) => count.toLocaleString("en") + " " + noun + (count === 1 ? "" : "s");

function seconds(value) {
  if (value === null) return "–";
  if (value < 60) return value.toFixed(value < 10 ? 2 : 1) + " s";
  const whole = Math.round(value);
  return Math.floor(whole / 60).toLocaleString("en") + " min " + String(whole % 60).padStart(2, "0") + " s";
}

const TOKENS = new RegExp([
  "(?<c>#[^\\n]*)",
  "(?<s>[rbfuRBFU]{0,2}(?:\"\"\"[^]*?(?:\"\"\"|$)|'''[^]*?(?:'''|$)|\"(?:[^\"\\\\\\n]|\\\\[^])*\"?|'(?:[^'\\\\\\n]|\\\\[^])*'?))",
  "(?<n>\\b\\d[\\w.]*)",
  "(?<k>\\b(?:and|as|assert|async|await|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield)\\b)",
  "\\w+", // a name, so that its end is no string prefix
].join("|"), "g");

function codeBlock(code) {
  const pre = el("pre", "");
  if (code.length > HIGHLIGHTED_CHARS) {
    pre.textContent = code;
  } else {
    let done = 0;
    for (const match of code.matchAll(TOKENS)) {
      const kind = ["c", "s", "n", "k"].find((name) => match.groups[name] !== undefined);
      if (!kind) continue;
      pre.append(code.slice(done, match.index), el("span", kind, match[0]));
      done = match.index + match[0].length;
    }
    pre.append(code.slice(done));
  }
  return reachable(el("div", "code box", pre), "Code");
}

function reachable(box, label) { // boxes that scroll can be scrolled with the keyboard
  return withAttributes(box, { tabindex: "0", role: "group", "aria-label": label });
}

function outputBlock(output) {
  if (output.kind === "image") {
    const image = el("img", "");
    image.src = "data:" + output.mime + ";base64," + output.base64;
    image.alt = output.text;
    return el("figure", "output", image);
  }
  if (output.kind === "note") return el("p", "output note", output.text);
  const known = ["error", "stderr", "result"].includes(output.kind) ? output.kind : "stdout";
  return reachable(el("div", "output box " + known, el("pre", "", output.text)), "Output");
}

function folded(label, open, ...children) {
  const details = el("details", "", el("summary", "", label), ...children);
  details.open = open;
  return details;
}

function bar(parts, total, className = "") { // parts: [class, value, label]
  const said = parts.filter(([, value]) => value).map(([, , label]) => label).join(", ") || "nothing";
  const node = withAttributes(el("div", ("bar " + className).trim()), { role: "img", "aria-label": said });
  for (const [look, value] of parts) {
    if (!value || !total) continue;
    const piece = el("span", look);
    piece.style.width = (100 * value) / total + "%";
    node.append(piece);
  }
  return node;
}

function stepBlock(step, episode, link = null, longest = 0) {
  const badge = {
    cell: () => el("span", "badge " + (step.status === "ok" ? "ok" : "bad"), words(step.status || "")),
    answer: () => el("span", "badge " + LOOKS[episode.outcome][0], "final answer"),
    malformed: () => el("span", "badge none", "malformed"),
    lost: () => el("span", "badge machine", "machine failure"),
    stopped: () => el("span", "badge none", "stopped"),
  }[step.kind]();
  const name = link === null ? "Turn " + step.turn : el("a", "", "Turn " + step.turn);
  if (link !== null) name.href = link;
  const time = step.duration_s === undefined ? null : el("span", "muted small",
    longest ? bar([["fill-b", step.duration_s, seconds(step.duration_s)]], longest, "thin") : null, " " + seconds(step.duration_s));
  const block = el("article", "", el("header", "", el("h3", "", name), badge, time));
  block.dataset.turn = step.turn;
  if (step.reasoning) block.append(folded("Reasoning", false, el("div", "plain", step.reasoning)));
  if (step.prose) block.append(el("div", "prose box", step.prose));
  if (step.kind === "answer") block.append(el("div", "given", episode.answer));
  if (step.kind === "malformed" && step.calls) block.append(el("div", "code box", el("pre", "", step.calls)));
  if (step.kind !== "malformed" && step.code) block.append(codeBlock(step.code));
  const outputs = step.outputs || [];
  block.append(...outputs.filter((output) => output.text).map(outputBlock));
  if (step.kind === "malformed") {
    block.append(el("div", "", el("p", "eyebrow", "Observation"), el("pre", "box", step.observation || "(none)")));
  } else if (step.observation) {
    block.append(folded("What the agent saw", !outputs.length, el("pre", "", step.observation)));
  }
  return block;
}

function usageBars(row, most) {
  const [prompt, cached, completion] = row.tokens;
  const other = Math.max(row.duration_s - row.model_s - row.cell_s, 0);
  const time = [["fill-a", row.model_s, "model " + seconds(row.model_s)], ["fill-b", row.cell_s, "cells " + seconds(row.cell_s)],
    ["fill-d", other, "other " + seconds(other)]];
  const count = (n) => n.toLocaleString("en");
  const tokens = [["fill-d", cached, count(cached) + " prompt tokens from the cache"],
    ["fill-a", Math.max(prompt - cached, 0), count(Math.max(prompt - cached, 0)) + " prompt tokens"],
    ["fill-c", completion, count(completion) + " completion tokens"]];
  const legend = (parts) => el("div", "legend", ...parts.filter(([, value]) => value).map(([look, , label]) =>
    el("span", "", el("span", "key " + look), label)));
  const lines = [el("span", "eyebrow", "Time"), bar(time, Math.max(most.duration_s, row.duration_s)), legend(time)];
  if (prompt + completion) lines.push(el("span", "eyebrow", "Tokens"), bar(tokens, Math.max(most.tokens, prompt + completion)), legend(tokens));
  return el("div", "bars", ...lines);
}

const part = (label, ...children) => el("div", "part", el("h3", "", label), ...children);
const fact = (label, value) => el("div", "", el("dt", "", label), el("dd", "", value));

function verdictBlock(episode, look) {
  const value = (text, otherwise) => el("dd", "", text === null ? el("span", "muted", otherwise) : el("span", "mono plain", text));
  return el("dl", "verdict " + look,
    el("div", "", el("dt", "", "Answer given"), value(episode.answer, "none")),
    el("div", "", el("dt", "", "Expected"), value(episode.expected, "not recorded")),
    episode.reason ? el("div", "wide", el("dt", "", "Verdict"), el("dd", "plain", episode.reason)) : null,
    episode.error ? el("div", "wide", el("dt", "", "Error of the machine"), el("dd", "mono plain", episode.error)) : null);
}
