// The report of one run, or of two: its index is read at once, its episodes when they are opened.
"use strict";

const index = JSON.parse(byId("index").textContent);
const LEVELS = ["easy", "medium", "hard", "expert"];
const FILTERS = ["outcome", "stop_reason", "status", "level", "agent", "provenance", "run"];
const OPEN_CHUNKS = 8; // unpacked ones that are kept
const most = { duration_s: 0, tokens: 0 }; // over all episodes, so that bars can be compared
for (const row of index) {
  most.duration_s = Math.max(most.duration_s, row.duration_s);
  most.tokens = Math.max(most.tokens, row.tokens[0] + row.tokens[2]);
}

function distinct(field) {
  const order = (value) => (field === "level" && LEVELS.includes(value) ? LEVELS.indexOf(value) : LEVELS.length);
  return [...new Set(index.map((row) => row[field]))].sort(
    (a, b) => order(a) - order(b) || a.localeCompare(b, "en", { numeric: true }),
  );
}

// The packed parts of the page come after this script, so that the list need not wait for them

async function arrived(id) { // whole: what stands after it is there too
  while (document.readyState === "loading" && !(byId(id) && byId(id).nextElementSibling)) {
    await new Promise((done) => setTimeout(done, 15));
  }
}

const unpacked = new Map();

async function unpack(id) {
  await arrived(id);
  const bytes = Uint8Array.from(atob(byId(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function chunk(number) {
  if (!unpacked.has(number)) unpacked.set(number, unpack("chunk-" + number));
  const found = unpacked.get(number);
  unpacked.delete(number);
  unpacked.set(number, found); // the last used is the last to go
  if (unpacked.size > OPEN_CHUNKS) unpacked.delete(unpacked.keys().next().value);
  return found;
}

const episodeOf = async (row) => (await chunk(row.chunk))[row.place];

// Summary

function rateCell(picked) {
  const judged = picked.filter((row) => !["machine failure", "not judged"].includes(row.outcome));
  const correct = judged.filter((row) => row.outcome === "correct").length;
  if (!judged.length) return el("td", "muted", "–");
  return el("td", "", el("span", "rate", ((100 * correct) / judged.length).toFixed(1) + "%"),
    el("span", "muted small", correct + "/" + judged.length));
}

function passRates() {
  const whose = (row) => [row.run, named(row.agent)].filter(Boolean).join(" · ");
  const agents = [...new Set(index.map(whose))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const levels = distinct("level");
  const row = (name, picked, className) => el("tr", className, withAttributes(el("th", "", name), { scope: "row" }),
    ...(levels.length > 1 ? levels.map((level) => rateCell(picked.filter((row) => row.level === level))) : []),
    rateCell(picked));
  const heads = [...(levels.length > 1 ? levels.map(named) : []), levels.length > 1 ? "all" : named(levels[0])];
  const table = el("table", "", el("caption", "", "Pass rate"),
    el("thead", "", el("tr", "", el("th", "", "Agent"), ...heads.map((head) => el("th", "", head)))),
    el("tbody", "", ...agents.map((agent) => row(agent, index.filter((row) => whose(row) === agent), "")),
      ...(agents.length > 1 ? [row("all agents", index, "all")] : [])));
  const failures = index.filter((row) => row.outcome === "machine failure").length;
  const simulated = index.filter((row) => row.provenance === "simulated").length;
  const notes = [failures ? "Left out: " + plural(failures, "machine failure") + "." : "",
    simulated ? "Of them simulated: " + plural(simulated, "episode") + "." : ""].filter(Boolean);
  const note = notes.length ? el("p", "muted small", notes.join(" ")) : null;
  return reachable(el("div", "scroll-x", table, note), "Pass rate");
}

function stopReasons() {
  const count = (reason) => index.filter((row) => row.stop_reason === reason).length;
  const rows = distinct("stop_reason").map((reason) => [reason, count(reason)]).sort((a, b) => b[1] - a[1]);
  return el("table", "", el("caption", "", "Stop reasons"),
    el("thead", "", el("tr", "", el("th", "", "Reason"), el("th", "", "Episodes"))),
    el("tbody", "", ...rows.map(([reason, n]) => el("tr", "", withAttributes(el("th", "", words(reason)), { scope: "row" }),
      el("td", "", n.toLocaleString("en"))))));
}

// One episode

const linkTo = (row, turn = 0) => "#episode=" + encodeURIComponent(row.key.toWellFormed()) + (turn ? "&turn=" + turn : "");
const taskLink = (row) => "#task=" + encodeURIComponent(row.task_id.toWellFormed());

function episodeBlocks(row, episode) {
  const [look] = LOOKS[row.outcome];
  const turns = row.turns + (episode.malformed_turns ? " (" + episode.malformed_turns + " malformed)" : "");
  const facts = el("dl", "facts", row.run ? fact("Run", row.run) : null, fact("Agent", named(row.agent)), fact("Level", named(row.level)),
    episode.dataset ? fact("Dataset", episode.dataset) : null, fact("Provenance", row.provenance),
    fact("Seed", String(row.seed)), fact("Stop reason", words(row.stop_reason)), fact("Turns", turns),
    fact("Time", seconds(row.duration_s)), fact("In cells", seconds(row.cell_s)));
  const files = el("ul", "files", ...episode.files.map((name) => el("li", "", el("code", "", "data/" + name))));
  const longest = Math.max(0, ...episode.steps.map((step) => step.duration_s || 0));
  const twins = index.filter((other) => other.task_id === row.task_id).length;
  const beside = twins > 1 ? el("a", "plainlink small", "all " + twins + " rollouts of this task") : null;
  if (beside) beside.href = taskLink(row);
  const simulated = row.provenance === "simulated"
    ? el("p", "simulated", "Simulated: a language model invented the outputs of these cells; no code ran.") : null;
  return [
    el("div", "", el("div", "top", el("h2", "", row.task_id), el("span", "badge " + look, row.outcome), beside), facts),
    simulated,
    part("Question", el("p", "prose question", episode.question)),
    episode.guidelines ? part("Guidelines", el("p", "prose", episode.guidelines)) : null,
    episode.files.length ? part("Files", files) : null,
    verdictBlock(episode, look),
    usageBars(row, most),
    episode.prompt.length ? folded("What the agent was given", false, ...episode.prompt.flatMap((message) => [
      el("p", "eyebrow", message.role), reachable(el("pre", "", message.text), "Message")])) : null,
    ...episode.steps.map((step) => stepBlock(step, episode, linkTo(row, step.turn), longest)),
    episode.steps.length ? null : el("p", "muted", "No message of the agent."),
  ].filter((block) => block !== null);
}

// What is shown: an episode, the rollouts of a task, or two runs; the address says which

let rows = [];
let chosen = -1;
let showing = 0; // a later choice overtakes one that is still being unpacked

function pane(beside) {
  byId("main").hidden = beside;
  byId("beside").hidden = !beside;
}

async function choose(at, { scroll = false, turn = 0 } = {}) {
  const mine = ++showing;
  pane(false);
  if (rows[chosen]) rows[chosen].removeAttribute("aria-current");
  chosen = at;
  rows[at].setAttribute("aria-current", "true");
  const list = byId("list"); // scrollIntoView would move the whole page
  const [row, box] = [rows[at].getBoundingClientRect(), list.getBoundingClientRect()];
  if (row.top < box.top) list.scrollTop -= box.top - row.top;
  if (row.bottom > box.bottom) list.scrollTop += row.bottom - box.bottom;
  const episode = await episodeOf(index[at]);
  if (mine !== showing) return;
  byId("episode").replaceChildren(...episodeBlocks(index[at], episode));
  const top = byId("episode").getBoundingClientRect().top;
  if (turn) goToTurn(turn);
  else if (scroll && (top < 0 || top > innerHeight / 2)) byId("episode").scrollIntoView({ block: "start" });
}

function goToTurn(turn) {
  for (const other of document.querySelectorAll("article.linked")) other.classList.remove("linked");
  const step = document.querySelector('article[data-turn="' + turn + '"]');
  if (!step) return;
  step.classList.add("linked");
  step.scrollIntoView({ block: "start" });
}

async function showTask(id) {
  const mine = ++showing;
  const group = index.filter((row) => row.task_id === id);
  if (!group.length) return false;
  const episodes = await Promise.all(group.map(episodeOf));
  if (mine !== showing) return true;
  pane(true);
  byId("beside").replaceChildren(...besideBlocks(group, group.map((row, n) => ({ ...row, ...episodes[n] }))));
  scrollTo(0, 0);
  return true;
}

async function follow(scroll) { // the address; false if it leads nowhere
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("runs") && byId("run").options.length > 2) {
    showing += 1;
    pane(true);
    byId("beside").replaceChildren(...runsBlocks(index));
    return true;
  }
  if (asked.has("task")) return showTask(asked.get("task"));
  const at = index.findIndex((row) => row.key.toWellFormed() === asked.get("episode"));
  if (at < 0) return false;
  await choose(at, { scroll, turn: Number(asked.get("turn")) || 0 });
  return true;
}

function pages() {
  const links = [["Episodes", () => linkTo(index[Math.max(chosen, 0)])]];
  if (distinct("run").length > 1) links.push(["Two runs", () => "#runs"]);
  if (new Set(index.map((row) => row.task_id)).size < index.length) links.push(["Rollouts beside each other", () => taskLink(index[Math.max(chosen, 0)])]);
  byId("pages").replaceChildren(...links.map(([name, to]) => {
    const link = el("a", "", name);
    link.href = to();
    link.addEventListener("click", () => { link.href = to(); });
    return link;
  }));
  byId("pages").hidden = links.length < 2;
}

// List and filters

let texts = null; // of all episodes, for the search; unpacked when it is first used

function listRow(row, sayRun, saySeed) {
  const [look, sign] = LOOKS[row.outcome];
  const mark = withAttributes(el("span", "mark " + look, sign), { role: "img", "aria-label": row.outcome });
  mark.title = row.outcome;
  const about = [sayRun ? row.run : "", named(row.agent), row.level, saySeed ? "seed " + row.seed : "", plural(row.turns, "turn"),
    row.provenance === "simulated" ? "simulated" : ""];
  const link = el("a", "", mark, el("span", "name", row.task_id), el("span", "muted small", about.filter(Boolean).join(" · ")));
  link.href = linkTo(row);
  return link;
}

async function filter() {
  const fields = FILTERS.filter((field) => byId(field).value !== "*");
  const text = byId("search").value.trim().toLowerCase();
  if (text && texts === null) texts = await unpack("texts");
  if (text !== byId("search").value.trim().toLowerCase()) return; // more was typed meanwhile
  let shown = 0;
  index.forEach((row, at) => {
    const fits = fields.every((field) => (field === "status" ? row.statuses.includes(byId(field).value.slice(1))
      : "=" + row[field] === byId(field).value)) && (!text || texts[at].includes(text));
    if (rows[at].parentElement.hidden === fits) rows[at].parentElement.hidden = !fits;
    shown += fits;
  });
  byId("count").textContent = shown ? shown.toLocaleString("en") + " of " + plural(index.length, "episode") : "No episode fits these filters.";
}

async function move(by) {
  let next = chosen + by;
  while (rows[next] && rows[next].parentElement.hidden) next += by;
  if (!rows[next]) return;
  history.replaceState(null, "", linkTo(index[next]));
  await choose(next, { scroll: true });
}

function moveTurn(by) {
  const turns = [...document.querySelectorAll("#episode article")];
  const here = turns.findIndex((step) => step.classList.contains("linked"));
  const next = turns[Math.min(Math.max(here + by, 0), turns.length - 1)];
  if (!next) return;
  history.replaceState(null, "", linkTo(index[chosen], next.dataset.turn));
  goToTurn(next.dataset.turn);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  if (event.key === "j") move(1);
  if (event.key === "k") move(-1);
  if (event.key === "n") moveTurn(1);
  if (event.key === "p") moveTurn(-1);
  if (event.key === "g" && chosen >= 0) location.hash = byId("beside").hidden ? taskLink(index[chosen]) : linkTo(index[chosen]);
  if (event.key === "/") {
    event.preventDefault();
    byId("search").focus();
  }
}

function fillFilters() {
  for (const field of FILTERS) {
    const values = field === "status" ? [...new Set(index.flatMap((row) => row.statuses))].sort() : distinct(field);
    const options = values.map((value) => withAttributes(el("option", "", words(named(value))), { value: "=" + value }));
    byId(field).append(withAttributes(el("option", "", "all"), { value: "*" }), ...options);
    byId(field).addEventListener("change", filter);
  }
  byId("run").parentElement.hidden = distinct("run").length < 2;
}

async function start() {
  if (!index.length) return;
  pane(false);
  byId("summary").append(passRates(), stopReasons());
  fillFilters();
  const [sayRun, saySeed] = [distinct("run").length > 1, new Set(index.map((row) => row.seed)).size > 1];
  rows = index.map((row) => listRow(row, sayRun, saySeed));
  byId("list").append(...rows.map((row) => el("li", "", row)));
  byId("list").addEventListener("click", (event) => {
    const at = rows.indexOf(event.target.closest("a"));
    if (at < 0 || event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab
    event.preventDefault();
    history.pushState(null, "", rows[at].getAttribute("href"));
    choose(at, { scroll: true });
  });
  byId("search").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  const turned = async () => { if (!(await follow(true))) await choose(Math.max(chosen, 0)); };
  window.addEventListener("hashchange", turned);
  window.addEventListener("popstate", turned);
  document.addEventListener("keydown", press);
  filter();
  pages();
  if (!(await follow(false))) await choose(0);
}

start();
