// A life of @ruvector/sona: cycle after cycle it is given trajectories, and made to learn. One JSON line: CPU seconds of
// each cycle. The centroids of its patterns in the end go to a file, float32.
// node peer_life.mjs FOLDER ROWS CENTROIDS CYCLES EACH WIDTH CLUSTERS: FOLDER has the package in its node_modules, ROWS is
// a file of float32, EACH rows a cycle.
import { createRequire } from "node:module";
import fs from "node:fs";
import path from "node:path";

const [folder, file, out] = process.argv.slice(2, 5);
const [cycles, each, width, clusters] = process.argv.slice(5).map(Number);
const { SonaEngine } = createRequire(path.join(path.resolve(folder), "x.js"))("@ruvector/sona");
const bytes = fs.readFileSync(file);
const numbers = new Float32Array(bytes.buffer, bytes.byteOffset, cycles * each * width);

const engine = SonaEngine.withConfig({ hiddenDim: width, patternClusters: clusters });
const seconds = [];
for (let cycle = 0; cycle < cycles; cycle++) {
  for (let place = cycle * each; place < (cycle + 1) * each; place++) {
    const embedding = Array.from(numbers.subarray(place * width, (place + 1) * width));
    const id = engine.beginTrajectory(embedding);
    engine.addTrajectoryStep(id, embedding, [], 0.9);
    engine.endTrajectory(id, 0.9);
  }
  const began = process.cpuUsage();
  engine.forceLearn();
  const used = process.cpuUsage(began);
  seconds.push((used.user + used.system) / 1e6);
}

const any = Array.from(numbers.subarray(0, width));
const patterns = engine.findPatterns(any, 1e9); // all
fs.writeFileSync(out, Buffer.from(Float32Array.from(patterns.flatMap(({ centroid }) => centroid)).buffer));
console.log(JSON.stringify({ seconds }));
