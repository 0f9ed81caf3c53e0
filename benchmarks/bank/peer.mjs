// Clusters that @ruvector/sona makes of the rows of a file. One JSON line: milliseconds of its cycle, number of patterns,
// and for each row the pattern of the largest cosine.
// node peer.mjs FOLDER FILE ROWS WIDTH CLUSTERS: FOLDER has the package in its node_modules, FILE is float32.
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";
import fs from "node:fs";
import path from "node:path";

const [folder, file] = process.argv.slice(2, 4);
const [rows, width, clusters] = process.argv.slice(4).map(Number);
const { SonaEngine } = createRequire(path.join(path.resolve(folder), "x.js"))("@ruvector/sona");
const bytes = fs.readFileSync(file);
const numbers = new Float32Array(bytes.buffer, bytes.byteOffset, rows * width);
const row = (place) => numbers.subarray(place * width, (place + 1) * width);

const engine = SonaEngine.withConfig({
  hiddenDim: width,
  patternClusters: clusters,
  trajectoryCapacity: Math.max(10000, rows),
  qualityThreshold: 0,
});
for (let place = 0; place < rows; place++) {
  const embedding = Array.from(row(place));
  const id = engine.beginTrajectory(embedding);
  engine.addTrajectoryStep(id, embedding, [], 0.9);
  engine.endTrajectory(id, 0.9);
}
const began = performance.now();
engine.forceLearn();
const ms = performance.now() - began;

const patterns = engine.findPatterns(Array.from(row(0)), rows).map(({ centroid }) => {
  const length = Math.hypot(...centroid) || 1;
  return Float32Array.from(centroid, (value) => value / length);
});
const labels = Array.from({ length: rows }, (_, place) => {
  const one = row(place);
  let best = -Infinity;
  let label = -1;
  patterns.forEach((centroid, number) => {
    let cosine = 0;
    for (let at = 0; at < width; at++) cosine += centroid[at] * one[at];
    if (cosine > best) [best, label] = [cosine, number];
  });
  return label;
});
console.log(JSON.stringify({ ms, patterns: patterns.length, labels }));
