// The rollouts of one task beside each other, and the tasks of two runs.
"use strict";

const stepKey = (step, episode) =>
  step.kind === "answer" ? "answer " + (episode.answer || "").trim() : step.kind + " " + (step.code || step.prose || "").replace(/\s+/g, " ").trim();

function waysOf(group) { // for each rollout and turn, the number of the way that it has gone so far
  const ways = group.map(() => []);
  const turns = Math.max(...group.map((episode) => episode.steps.length), 0);
  for (let turn = 0; turn < turns; turn += 1) {
    const known = new Map();
    group.forEach((episode, n) => {
      if (turn >= episode.steps.length) return;
      const way = JSON.stringify([turn ? ways[n][turn - 1] : 0, stepKey(episode.steps[turn], episode)]);
      if (!known.has(way)) known.set(way, known.size);
      ways[n].push(known.get(way));
    });
  }
  return { ways, turns };
}

function partedAt(ways, turns) { // the first turn at which not all do the same, from 0; -1 if there is none
  for (let turn = 0; turn < turns; turn += 1) {
    if (new Set(ways.map((way) => way[turn])).size > 1) return turn;
  }
  return -1;
}

const letter = (way) => (way < 26 ? String.fromCharCode(65 + way) : "#" + (way + 1));

function partedText(ways, turns) {
  if (ways.length < 2) return "There is one rollout of this task.";
  const turn = partedAt(ways, turns);
  if (turn < 0) return "All rollouts do the same.";
  const counts = new Map();
  for (const way of ways) counts.set(way[turn], (counts.get(way[turn]) || 0) + 1);
  const sizes = [...counts.values()].sort((a, b) => b - a).join(" + ");
  return (turn ? "They do the same up to turn " + turn + " and part at turn " : "They part at turn ") + (turn + 1) + ": "
    + counts.size + " ways (" + sizes + ").";
}

function besideBlocks(rows, group) { // rows of the index, and their episodes
  const { ways, turns } = waysOf(group);
  const parted = partedAt(ways, turns);
  const grid = el("div", "beside");
  grid.style.gridTemplateColumns = "4.5rem repeat(" + group.length + ", minmax(15rem, 1fr))";
  grid.append(el("div", "turn", ""), ...group.map((episode, n) => {
    const [look, sign] = LOOKS[episode.outcome];
    const link = el("a", "plainlink", [rows[n].run, named(episode.agent), "seed " + episode.seed].filter(Boolean).join(" · "));
    link.href = linkTo(rows[n]);
    const answer = episode.answer === null ? words(episode.stop_reason) : episode.answer;
    return el("div", "", el("div", "top", withAttributes(el("span", "mark " + look, sign), { role: "img", "aria-label": episode.outcome }), link),
      reachable(el("pre", "", answer), "Answer"));
  }));
  for (let turn = 0; turn < turns; turn += 1) {
    grid.append(el("div", "turn", "Turn " + (turn + 1)));
    group.forEach((episode, n) => {
      const step = episode.steps[turn];
      grid.append(step ? besideStep(step, rows[n], episode, letter(ways[n][turn]), parted >= 0 && turn >= parted
        && ways.filter((way) => way[turn] === ways[n][turn]).length === 1) : el("div", "gap", ""));
    });
  }
  reachable(grid, "Rollouts beside each other");
  return [
    el("h2", "", group[0].task_id), el("p", "prose question", group[0].question),
    el("p", "", partedText(ways, turns)),
    el("p", "muted small", "Rollouts with the same letter in a turn have done the same up to it; a mark on the left is a way gone alone."),
    grid,
  ];
}

function besideStep(step, row, episode, way, alone) {
  const bad = step.kind === "cell" && step.status !== "ok";
  const link = el("a", "plainlink", way);
  link.href = linkTo(row, step.turn);
  withAttributes(link, { "aria-label": "Way " + way + ", turn " + step.turn });
  const label = step.kind === "cell" ? words(step.status) : step.kind;
  const seen = (step.outputs || []).map((output) => output.text).join("\n") || step.observation || "";
  return el("div", alone ? "alone" : "", el("div", "top", link, el("span", "badge " + (bad ? "bad" : "ok"), label)),
    reachable(el("pre", "", (step.kind === "answer" ? episode.answer : step.code || step.prose || "").slice(0, 2000)), "Step"),
    seen ? reachable(el("pre", "seen", seen.slice(0, 600) + (seen.length > 600 ? " …" : "")), "Output") : null);
}

function runsBlocks(index) { // the tasks of two runs, those first whose share of right answers changed most
  const runs = [...new Set(index.map((row) => row.run))];
  const byTask = new Map();
  for (const row of index) {
    if (["machine failure", "not judged"].includes(row.outcome)) continue;
    if (!byTask.has(row.task_id)) byTask.set(row.task_id, new Map());
    const counts = byTask.get(row.task_id);
    const [right, all] = counts.get(row.run) || [0, 0];
    counts.set(row.run, [right + (row.outcome === "correct"), all + 1]);
  }
  const share = (counts, run) => { const [right, all] = counts.get(run) || [0, 0]; return all ? right / all : NaN; };
  const lines = [...byTask].map(([task, counts]) => [task, counts, share(counts, runs[1]) - share(counts, runs[0])]);
  const size = (change) => (Number.isNaN(change) ? -1 : Math.abs(change));
  lines.sort((a, b) => size(b[2]) - size(a[2]) || a[2] - b[2] || a[0].localeCompare(b[0], "en", { numeric: true }));
  const better = lines.filter((line) => line[2] > 0).length;
  const worse = lines.filter((line) => line[2] < 0).length;
  const body = lines.map(([task, counts, change]) => {
    const link = el("a", "plainlink", task);
    link.href = "#task=" + encodeURIComponent(task.toWellFormed());
    const cells = runs.map((run) => el("td", "", counts.has(run) ? counts.get(run).join("/") : "–"));
    const text = Number.isNaN(change) ? "–" : (change > 0 ? "+" : "") + (100 * change).toFixed(0) + " points";
    return el("tr", "", withAttributes(el("th", "", link), { scope: "row" }), ...cells,
      el("td", change > 0 ? "up" : change < 0 ? "down" : "muted", text));
  });
  const heads = ["Task", ...runs, "Change"].map((name) => withAttributes(el("th", "", name), { scope: "col" }));
  return [
    el("h2", "", "Two runs, task by task"),
    el("p", "", plural(better, "task") + " better, " + plural(worse, "task") + " worse, " + (lines.length - better - worse)
      + " unchanged or in one run alone."),
    reachable(el("div", "scroll-x", el("table", "", el("thead", "", el("tr", "", ...heads)), el("tbody", "", ...body))), "Tasks"),
  ];
}
