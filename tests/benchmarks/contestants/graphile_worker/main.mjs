// The benchmark's program for graphile-worker; see `contestant.py` for the verbs.

import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";

import {
  connectionString,
  counted,
  endOfWork,
  enqueued,
  main,
  now,
  orders,
  parameters,
  settingOf,
  together,
  workUntil,
} from "./_protocol.mjs";

process.env.NO_LOG_SUCCESS = "1"; // read when the library is loaded: no line of log for every job
const { Logger, makeWorkerUtils, run } = await import("graphile-worker");

function batching(concurrentJobs) {
  return {
    concurrentJobs,
    maxPoolSize: concurrentJobs + 1,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  };
}

const setting = settingOf({
  "performance preset": batching(24),
  "100 jobs": batching(100),
  default: {},
});

const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(level, message);
});

// The bulk statement of the library's own performance test; unlike `addJobs()` it does not send the rows back.
async function addMany(utils, jobs) {
  const specs = JSON.stringify(jobs.map((job) => ({ identifier: "bench", payload: job })));
  await utils.withPgClient((client) =>
    client.query(
      "select 1 from graphile_worker.add_jobs(" +
        "array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)))",
      [specs],
    ),
  );
}

async function withUtils(use) {
  const utils = await makeWorkerUtils({ connectionString, logger, preset: { worker: setting } });
  try {
    await use(utils);
  } finally {
    await utils.release();
  }
}

function prepare() {
  return withUtils((utils) => utils.migrate());
}

function enqueue(mode, count, sleepMs) {
  return withUtils(async (utils) => {
    await utils.withPgClient((client) => client.query("select 1"));
    await enqueued(count, async () => {
      if (mode === "bulk") {
        await addMany(
          utils,
          Array.from({ length: count }, (_, n) => parameters(n, sleepMs)),
        );
      } else {
        for (let n = 0; n < count; n++) await utils.addJob("bench", parameters(n, sleepMs));
      }
    });
  });
}

function produce() {
  return withUtils(async (utils) => {
    await utils.withPgClient((client) => client.query("select 1"));
    for await (const [first, count] of orders()) {
      if (count === 1) await utils.addJob("bench", parameters(first, 0));
      else await addMany(utils, together(first, count));
    }
  });
}

async function bench({ n, sleep_ms, at }) {
  const start = now();
  if (sleep_ms) await sleep(sleep_ms);
  counted(start, n, at);
}

async function work() {
  const end = endOfWork();
  const events = new EventEmitter();
  const listening = once(events, "pool:listen:success");
  const runner = await run({
    connectionString,
    taskList: { bench },
    events,
    logger,
    noHandleSignals: true,
    preset: { worker: setting },
  });
  await listening;
  await workUntil(end, () => runner.stop());
  process.exit(); // a stop with jobs in the local queue leaves the library's connections open until they time out
}

await main({ prepare, enqueue, produce, work });
