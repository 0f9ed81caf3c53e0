// Drives the micro-LoRA of @ruvector/sona over an episode: JSON on stdin, JSON on stdout.
//
// In:  {dim, rank, rate, feedbacks: [{x, answer, reward}], probes: [[...]], axis: [...]}
// Out: {scores: [[...]], update_us, apply_us}; scores[n][m] is how far probe m points along the axis after n feedbacks.
//
// A feedback is a trajectory of two steps, the answer with its reward and the opposite answer with the opposite
// reward: the package subtracts the mean reward of a trajectory, so that a single step teaches it nothing. flush()
// makes it take what it has heard.
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";

const { SonaEngine } = createRequire(import.meta.url)("@ruvector/sona");

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { dim, rank, rate, feedbacks, probes, axis } = JSON.parse(Buffer.concat(chunks).toString());

const engine = SonaEngine.withConfig({ hiddenDim: dim, microLoraRank: rank, microLoraLr: rate, qualityThreshold: 0 });
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;
const applied = [];
const updated = [];

function score(probe) {
  const began = performance.now();
  const moved = engine.applyMicroLora(probe);
  applied.push(performance.now() - began);
  return moved.reduce((sum, value, place) => sum + value * axis[place], 0);
}

const scores = [probes.map(score)];
for (const { x, answer, reward } of feedbacks) {
  const opposite = answer.map((value) => -value);
  const began = performance.now();
  const id = engine.beginTrajectory(x);
  engine.addTrajectoryStep(id, answer, [], reward);
  engine.addTrajectoryStep(id, opposite, [], 1 - reward);
  engine.endTrajectory(id, reward);
  engine.flush();
  updated.push(performance.now() - began);
  scores.push(probes.map(score));
}
console.log(JSON.stringify({ scores, update_us: 1e3 * median(updated), apply_us: 1e3 * median(applied) }));
