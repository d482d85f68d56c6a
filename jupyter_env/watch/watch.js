// The live page: sends a question and its files, shows each cell as it comes, and can stop.
"use strict";

const uploaded = [];
let sending = 0; // picks of files that are on their way
let problems = []; // of their files
let asked = false; // whether an episode runs or is being started
let running = null; // id of the episode
let source = null;
let steps = [];

const DOING = { starting: "The kernel is starting …", thinking: "The agent is thinking …", running: "A cell is running …" };

function say(status, problem = "") {
  byId("status").textContent = status;
  byId("problem").textContent = problem;
}

function setRunning(is) {
  asked = is;
  byId("stop").disabled = !is;
  allowRun();
}

function allowRun() { // an episode starts with the files that have arrived, so it waits for all that are picked
  byId("run").disabled = asked || sending > 0;
}

async function sent(path, options) {
  const response = await fetch(path, options);
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(reply.error || "the server answered " + response.status);
  return reply;
}

async function upload() {
  const picked = [...byId("files").files];
  byId("files").value = ""; // at once, or it would empty what is picked meanwhile
  if (sending === 0) problems = [];
  sending += 1;
  allowRun();
  for (const file of picked) {
    say("Sending " + file.name + " …", problems.join("; "));
    try {
      const { name } = await sent("files?name=" + encodeURIComponent(file.name.toWellFormed()), { method: "PUT", body: file });
      uploaded.push(name);
      byId("uploaded").append(el("li", "", el("code", "", "data/" + name)));
    } catch (error) {
      problems.push(error.message);
    }
  }
  sending -= 1;
  allowRun();
  if (sending === 0) say("", problems.join("; "));
}

async function ask(event) {
  event.preventDefault();
  setRunning(true);
  say(DOING.starting);
  byId("cells").replaceChildren();
  byId("result").hidden = true;
  try {
    const question = { question: byId("question").value.toWellFormed(), guidelines: byId("guidelines").value.toWellFormed(), files: uploaded };
    running = (await sent("episodes", { method: "POST", body: JSON.stringify(question) })).id;
  } catch (error) {
    setRunning(false);
    say("", error.message);
    return;
  }
  follow(running);
}

function follow(id) {
  location.hash = id; // so that a page that is loaded again goes on
  steps = [];
  source = new EventSource("episodes/" + encodeURIComponent(id) + "/events");
  source.addEventListener("state", (event) => state(JSON.parse(event.data)));
  source.addEventListener("step", (event) => step(JSON.parse(event.data)));
  source.addEventListener("end", (event) => end(id, JSON.parse(event.data)));
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
    setRunning(false);
    say("", "The episode cannot be followed: the server has ended, or does not know it any more.");
  };
}

function state({ doing, code, comment }) {
  say(DOING[doing]);
  clearPending();
  if (doing !== "running") return;
  const block = stepBlock({ turn: steps.length + 1, kind: "cell", status: "running", code, prose: comment }, {});
  block.classList.add("pending");
  block.querySelector(".badge").className = "badge none";
  byId("cells").append(block);
}

function clearPending() {
  for (const block of document.querySelectorAll(".pending")) block.remove();
}

function step(done) {
  clearPending();
  steps.push(done);
  if (done.kind !== "answer") byId("cells").append(stepBlock(done, { outcome: "not judged", answer: null }));
}

function end(id, result) {
  source.close();
  running = null;
  clearPending();
  setRunning(false);
  say("Ended after " + seconds(result.duration_s) + ": " + words(result.stop_reason) + ".", result.error ? result.error : "");
  const link = el("a", "plainlink", "Download the notebook");
  link.href = "episodes/" + encodeURIComponent(id) + "/notebook.ipynb";
  link.download = "notebook.ipynb";
  const answer = result.answer === null ? el("p", "muted", "The agent gave no answer.") : el("p", "given", result.answer);
  byId("result").replaceChildren(el("h2", "", "Answer"), answer, link);
  byId("result").hidden = false;
}

async function stop() {
  if (running === null) return;
  byId("stop").disabled = true;
  say("Stopping …");
  try {
    await sent("episodes/" + encodeURIComponent(running) + "/stop", { method: "POST" });
  } catch (error) {
    say("", error.message);
  }
}

byId("files").addEventListener("change", upload);
byId("ask").addEventListener("submit", ask);
byId("stop").addEventListener("click", stop);
setRunning(location.hash.length > 1); // said in either case: Firefox keeps buttons as they were before a reload
if (asked) {
  running = location.hash.slice(1);
  follow(running);
}
