// The benchmark's program for pg-boss; see `contestant.py` for the verbs.

import { setTimeout as sleep } from "node:timers/promises";

import { PgBoss } from "pg-boss";

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

function batches(batchSize) {
  return {
    instance: { useListenNotify: true },
    queue: { notify: true },
    work: { batchSize, burstWhenBatchFull: true, localConcurrency: 4 },
  };
}

const setting = settingOf({
  "batch 1000": batches(1000),
  "batch 100": batches(100),
  default: { instance: {}, queue: {}, work: {} },
});

async function started() {
  const boss = new PgBoss({ connectionString, ...setting.instance });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return boss;
}

async function withBoss(use) {
  const boss = await started();
  try {
    await use(boss);
  } finally {
    await boss.stop();
  }
}

function prepare() {
  return withBoss((boss) => boss.createQueue("bench", setting.queue));
}

function enqueue(mode, count, sleepMs) {
  return withBoss(async (boss) => {
    await boss.getQueue("bench");
    await enqueued(count, async () => {
      if (mode === "bulk") {
        await boss.insert(
          "bench",
          Array.from({ length: count }, (_, n) => ({ data: parameters(n, sleepMs) })),
        );
      } else {
        for (let n = 0; n < count; n++) await boss.send("bench", parameters(n, sleepMs));
      }
    });
  });
}

function produce() {
  return withBoss(async (boss) => {
    await boss.getQueue("bench");
    for await (const [first, count] of orders()) {
      if (count === 1) {
        await boss.send("bench", parameters(first, 0));
      } else {
        await boss.insert(
          "bench",
          together(first, count).map((data) => ({ data })),
        );
      }
    }
  });
}

async function bench({ data: { n, sleep_ms, at } }) {
  const start = now();
  if (sleep_ms) await sleep(sleep_ms);
  counted(start, n, at);
}

async function work() {
  const end = endOfWork();
  const boss = await started();
  await boss.work("bench", setting.work, async (jobs) => {
    await Promise.all(jobs.map(bench));
  });
  await workUntil(end, () => boss.stop());
}

await main({ prepare, enqueue, produce, work });
