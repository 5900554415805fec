'use strict';
// Worker threads as they should be used: one computes what it is asked to, the main loop goes on, another idles.
//
// Takes steps as `worker:MS`, `deep:MS`, `pool:MS` (of a worker that waits for its work with Atomics.wait, as
// those of pools do) or `main:MS`. Prints `ready`, and at SIGUSR2 begins: it prints of each
// step `held KIND START_NS END_NS LATE_MS`, the last being how late a timer of the main loop was at most
// until then, then `over`. Ends on SIGTERM.

const { Worker, isMainThread, parentPort, receiveMessageOnPort, workerData } = require('worker_threads');

const BEAT_MS = 10;
const PAUSE_MS = 700;
// Frames enough for a stack that is longer than anybody copies.
const DEPTH = 4000;

// CLOCK_MONOTONIC. Whoever computes calls nothing of ours meanwhile: it is to be blamed itself.
const now = process.hrtime.bigint;

function renderPdf(ms) {
  const start = now();
  const end = start + BigInt(ms) * 1000000n;
  while (now() < end);
  return `${start} ${now()}`;
}

function walkTree(ms, depth) {
  if (depth > 0) return walkTree(ms, depth - 1);
  const start = now();
  const end = start + BigInt(ms) * 1000000n;
  while (now() < end);
  return `${start} ${now()}`;
}

function rebuildIndex(ms) {
  const start = now();
  const end = start + BigInt(ms) * 1000000n;
  while (now() < end);
  return `${start} ${now()}`;
}

// Waits for work as long as there is none, and never goes back to its event loop.
function serveJobs(calls) {
  for (let done = 0; ; done += 1) {
    Atomics.wait(calls, 0, done);
    const job = receiveMessageOnPort(parentPort);
    parentPort.postMessage(resizeImage(job.message.ms));
  }
}

function resizeImage(ms) {
  const start = now();
  const end = start + BigInt(ms) * 1000000n;
  while (now() < end);
  return `${start} ${now()}`;
}

function work() {
  if (workerData) {
    // From its loop: by then it has waited once.
    setTimeout(serveJobs, 1, workerData);
    return;
  }
  parentPort.on('message', ({ kind, ms }) => {
    parentPort.postMessage(kind === 'deep' ? walkTree(ms, DEPTH) : renderPdf(ms));
  });
}

function serve(steps) {
  const busy = new Worker(__filename);
  const idle = new Worker(__filename);
  const calls = new Int32Array(new SharedArrayBuffer(4));
  const pooled = new Worker(__filename, { workerData: calls });
  let late = 0;
  let last = Date.now();
  setInterval(() => {
    const now = Date.now();
    late = Math.max(late, now - last - BEAT_MS);
    last = now;
  }, BEAT_MS);

  function next() {
    const step = steps.shift();
    if (step === undefined) {
      console.log('over');
      return;
    }
    const [kind, ms] = [step.split(':')[0], Number(step.split(':')[1])];
    late = 0;
    const done = (times) => {
      // The timer comes first, if it is late.
      setTimeout(() => {
        console.log(`held ${kind} ${times} ${late}`);
        setTimeout(next, PAUSE_MS);
      }, 2 * BEAT_MS);
    };
    if (kind === 'main') {
      done(rebuildIndex(ms));
    } else if (kind === 'pool') {
      pooled.once('message', done);
      pooled.postMessage({ kind, ms });
      Atomics.add(calls, 0, 1);
      Atomics.notify(calls, 0);
    } else {
      busy.once('message', done);
      busy.postMessage({ kind, ms });
    }
  }

  process.on('SIGTERM', () => process.exit());
  process.once('SIGUSR2', next);
  idle.once('online', () => busy.postMessage({ kind: 'worker', ms: 1 }));
  busy.once('message', () => console.log('ready'));
}

if (isMainThread) serve(process.argv.slice(2));
else work();
