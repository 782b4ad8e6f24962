// What the Node programs of the benchmark share; see `contestant.py` for the protocol. It is copied beside each of them.

import { createInterface } from "node:readline";

export const connectionString = process.env.BENCH_DSN;
const stamp = process.env.BENCH_STAMP ?? "none";

export function settingOf(settings) {
  const setting = settings[process.env.BENCH_SETTING];
  if (!setting) throw new Error(`unknown setting ${process.env.BENCH_SETTING}`);
  return setting;
}

export function say(line) {
  process.stdout.write(line + "\n");
}

export function now() {
  return process.hrtime.bigint();
}

export function parameters(n, sleepMs) {
  return { n, sleep_ms: sleepMs, at: Number(now()) };
}

// Around the calls of `enqueue`: says how long they took.
export async function enqueued(count, store) {
  const begin = performance.now();
  await store();
  say(JSON.stringify({ enqueued: count, seconds: (performance.now() - begin) / 1000 }));
}

// The number of the first job and how many, for each line that `produce` reads. Says that it is ready before the
// first, and that an order is committed when the next one is asked for.
export async function* orders() {
  say(`{"ready": ${now()}}`);
  let first = 0;
  for await (const line of createInterface({ input: process.stdin })) {
    const count = Number(line);
    yield [first, count];
    say(`{"committed": ${now()}}`);
    first += count;
  }
}

// Jobs of one order that are stored together: the clock is read once.
export function together(first, count) {
  const at = Number(now());
  return Array.from({ length: count }, (_, i) => ({ n: first + i, sleep_ms: 0, at }));
}

let ran = 0;
let firstStart = 0n;
let told = 0;
const latencies = [];

// What a job calls at its end. Reading the clock and sleeping stay in each program, as the job is the library's.
export function counted(start, n, at) {
  if (stamp === "each") say(`{"start": ${start}, "n": ${n}}`);
  else if (stamp === "latency") latencies.push(Math.round((Number(start) - at) / 1000));
  if (!firstStart) firstStart = start;
  ran += 1;
}

function tell() {
  if (told === ran) return;
  told = ran;
  say(`{"ran": ${ran}, "first": ${firstStart}}`);
}

// Resolved at the end of the input or by SIGTERM. To be called before the library is started.
export function endOfWork() {
  return new Promise((resolve) => {
    process.stdin.on("end", resolve).resume();
    process.on("SIGTERM", resolve);
  });
}

// The part of `work` while the library works: tells the count until the end, then stops the library.
export async function workUntil(end, stop) {
  say(`{"ready": ${now()}}`);
  const reporter = setInterval(tell, 20);
  await end;
  process.stdin.destroy();
  await stop();
  clearInterval(reporter);
  tell();
  if (stamp === "latency") say(JSON.stringify({ latencies_us: latencies }));
  // Until the pipe has taken it all: a program that exits before that takes the rest with it.
  await new Promise((resolve) => process.stdout.write(`{"stopped": ${now()}}\n`, resolve));
}

export async function main({ prepare, enqueue, produce, work }) {
  const [verb, ...args] = process.argv.slice(2);
  switch (verb) {
    case "prepare":
      return await prepare();
    case "enqueue":
      return await enqueue(args[0], Number(args[1]), Number(args[2]));
    case "produce":
      return await produce();
    case "work":
      return await work();
    default:
      console.error(`unknown verb ${verb}`);
      process.exitCode = 1;
  }
}
