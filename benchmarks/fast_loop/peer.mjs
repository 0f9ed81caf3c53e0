// Microseconds that @ruvector/sona takes to record one trajectory: begin, two steps, end. One JSON line.
// node peer.mjs FOLDER WIDTH CALLS ACTIVATIONS ATTENTION: FOLDER has the package in its node_modules; ACTIVATIONS and
// ATTENTION are the lengths of the two arrays that go with each step, 0 for an empty one.
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";
import path from "node:path";

const [folder, width, calls, activations, attention] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const { SonaEngine } = createRequire(path.join(path.resolve(folder), "x.js"))("@ruvector/sona");
const engine = SonaEngine.withConfig({ hiddenDim: width, trajectoryCapacity: 10000, qualityThreshold: 0 });

// Doubles in a plain array: what its interface takes.
const vector = (seed, length) => Array.from({ length }, (_, place) => Math.sin(seed * 7919 + place * 104729));
const embeddings = Array.from({ length: 200 }, (_, seed) => vector(seed, width));
const given = Array.from({ length: 200 }, (_, seed) => vector(seed, activations));
const weights = vector(201, attention);

const took = [];
for (let call = 0; call < calls; call++) {
  const embedding = embeddings[call % embeddings.length];
  const activated = given[call % given.length];
  const began = performance.now();
  const id = engine.beginTrajectory(embedding);
  engine.addTrajectoryStep(id, activated, weights, 0.9);
  engine.addTrajectoryStep(id, activated, weights, 0.1);
  engine.endTrajectory(id, 0.9);
  took.push((performance.now() - began) * 1000);
}
const warm = took.slice(Math.floor(calls / 5)).sort((one, other) => one - other);
const at = (share) => warm[Math.min(warm.length - 1, Math.floor(warm.length * share))];
console.log(JSON.stringify({ median: at(0.5), p99: at(0.99), p999: at(0.999) }));
