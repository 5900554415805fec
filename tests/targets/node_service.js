'use strict';
// A sample HTTP service on node whose handlers stall its event loop in known ways, and write down when.
//
// `GET /regex?ms=300` stalls for about 300 ms; see ROUTES for the others. Prints `ready PORT PID` once it
// answers, ends on SIGTERM. The records are those of truth.py; the line is that of the function's definition.

const childProcess = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');
const { performance } = require('perf_hooks');
const { setTimeout: pause } = require('timers/promises');

const SHORT_MS = 30;
// Times the number of kinds of callbacks, this is no multiple of the time between two samples (10 ms): else
// they would always fall into the same ones.
const SLICE_MS = 7;
// A heartbeat that comes later than this after its time is written down.
const LAG_NOTED_NS = 40_000_000n;
const HEARTBEAT_MS = 20;
const WARM_UP_ROUNDS = 60;

const SOURCE = fs.readFileSync(__filename, 'latin1');
const truthPath = process.argv[process.argv.indexOf('--truth') + 1];
const truthFile = process.argv.includes('--truth') ? fs.openSync(truthPath, 'a') : null;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'node-service-'));
// Kept silent while the functions are warmed up.
let recording = false;

// CLOCK_MONOTONIC.
function now() {
  return process.hrtime.bigint();
}

function write(kind, start, end, name, line) {
  if (!recording || truthFile === null) return;
  const file = name === null ? null : __filename;
  const record = { kind, function: name, file, line, last_line: line };
  const text = JSON.stringify(record).slice(0, -1);
  // JSON has no numbers of 64 bits; as text they are exact.
  fs.writeSync(truthFile, `${text},"start_ns":${start},"end_ns":${end}}\n`);
}

// Where a function is defined, by its own source.
function lineOf(subject) {
  const text = typeof subject === 'function' ? subject.toString() : subject;
  const at = SOURCE.indexOf(Buffer.from(text).toString('latin1'));
  return SOURCE.slice(0, at).split('\n').length;
}

// What `work` does, the function of this name, which is defined on this line, is to blame for. Several
// names: whichever of them is told is right.
function stall(kind, names, line, work) {
  const lines = [line].flat();
  const start = now();
  const result = work();
  const end = now();
  [names].flat().forEach((name, index) => write(kind, start, end, name, lines[index]));
  return result;
}

function busyUntil(end) {
  let score = 0;
  while (now() < end) {
    for (let step = 0; step < 1000; step++) score = (score * 31 + 7) % 1000003;
  }
  return score;
}

// What keeps the loop waiting.

function loadConfig(fifo) {
  return fs.readFileSync(fifo, 'utf8');
}

function hashPassword(end) {
  while (now() < end) crypto.pbkdf2Sync('secret', 'salt', 20000, 64, 'md5');
}

// On CPUs with AVX2 the hash keeps what its unwind table needs below the stack pointer.
function checkUpload(upload, end) {
  while (now() < end) crypto.createHash('sha512').update(upload).digest('hex');
}

// Its inner function counts from a register, and is itself called with an aligned stack.
function encryptUpload(upload, end) {
  while (now() < end) {
    const cipher = crypto.createCipheriv('aes-256-gcm', Buffer.alloc(32), Buffer.alloc(12));
    cipher.update(upload);
    cipher.final();
  }
}

const parseImport = (document, end) => {
  let rows = 0;
  while (now() < end) rows += JSON.parse(document).length;
  return rows;
};

class Upload {
  constructor(text) {
    this.text = text;
  }

  validate(end) {
    let matches = 0;
    while (now() < end) {
      if (/^(\w+\s?)*$/.test(this.text)) matches++;
    }
    return matches;
  }

  static resize(end) {
    let pixels = 0;
    while (now() < end) for (let step = 0; step < 1000; step++) pixels = (pixels + step * 7) % 65521;
    return pixels;
  }
}

function renderInvoice(ms) {
  return childProcess.execSync(`sleep ${ms / 1000}`);
}

function reserveSeat(ms) {
  return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

function scoreRisk(end) {
  let score = 0;
  while (now() < end) {
    for (let step = 0; step < 1000; step++) score = (score * 31 + 7) % 1000003;
  }
  return score;
}

const countStock = (end) => {
  let stock = 0;
  while (now() < end) for (let step = 0; step < 1000; step++) stock = (stock ^ step) % 99991;
  return stock;
};

async function buildReport(end) {
  await null;
  let cells = 0;
  while (now() < end) for (let step = 0; step < 1000; step++) cells = (cells + step) % 7919;
  return cells;
}

// Small enough to become part of its caller.
function addEntry(sum, step) {
  return (sum * 17 + step) % 999983;
}

function sumLedger(end) {
  let sum = 0;
  while (now() < end) for (let step = 0; step < 1000; step++) sum = addEntry(sum, step);
  return sum;
}

function describeOrder(order) {
  // Never reached by its own name: the callback is to blame.
  return order.map((end) => {
    let total = 0;
    while (now() < end) for (let step = 0; step < 1000; step++) total = (total + step) % 6007;
    return total;
  });
}

// What the routes are bound to.

const after = (ms) => now() + BigInt(Math.round(ms * 1e6));
const document = JSON.stringify(Array.from({ length: 2000 }, (_, id) => ({ id, name: `row ${id}` })));
const upload = new Upload(`${'a'.repeat(16)}!`);

async function file(ms) {
  const fifo = path.join(folder, `config-${now()}`);
  childProcess.execFileSync('mkfifo', [fifo]);
  const writer = childProcess.spawn('sh', ['-c', `sleep ${ms / 1000}; echo {} > ${fifo}`]);
  // Whoever waits for its end is the loop, which is about to be stalled.
  writer.unref();
  // The two children are turns of their own.
  await pause(20);
  return stall('file', 'loadConfig', lineOf(loadConfig), () => loadConfig(fifo));
}

function hash(ms) {
  return stall('hash', 'hashPassword', lineOf(hashPassword), () => hashPassword(after(ms)));
}

// What somebody has sent, of 4 MiB.
const sent = Buffer.alloc(4 << 20, 7);

function digest(ms) {
  return stall('digest', 'checkUpload', lineOf(checkUpload), () => checkUpload(sent, after(ms)));
}

function encrypt(ms) {
  return stall('encrypt', 'encryptUpload', lineOf(encryptUpload), () => encryptUpload(sent, after(ms)));
}

function json(ms) {
  const line = lineOf(parseImport);
  return stall('json', 'parseImport', line, () => parseImport(document, after(ms)));
}

function regex(ms) {
  const line = lineOf(upload.validate);
  return stall('regex', 'validate', line, () => upload.validate(after(ms)));
}

function shell(ms) {
  return stall('shell', 'renderInvoice', lineOf(renderInvoice), () => renderInvoice(ms));
}

function lock(ms) {
  return stall('lock', 'reserveSeat', lineOf(reserveSeat), () => reserveSeat(ms));
}

function cpu(ms) {
  return stall('cpu', 'scoreRisk', lineOf(scoreRisk), () => scoreRisk(after(ms)));
}

function arrow(ms) {
  return stall('arrow', 'countStock', lineOf(countStock), () => countStock(after(ms)));
}

function method(ms) {
  return stall('method', 'resize', lineOf(Upload.resize), () => Upload.resize(after(ms)));
}

async function asynchronous(ms) {
  // A turn of its own for the call; the stall is in the microtask after it.
  await pause(5);
  const start = now();
  await buildReport(after(ms));
  write('asynchronous', start, now(), 'buildReport', lineOf(buildReport));
}

function inlined(ms) {
  const names = ['sumLedger', 'addEntry'];
  const lines = [lineOf(sumLedger), lineOf(addEntry)];
  return stall('inlined', names, lines, () => sumLedger(after(ms)));
}

function anonymous(ms) {
  const line = lineOf('return order.map((end) => {');
  return stall('anonymous', '(anonymous)', line, () => describeOrder([after(ms)]));
}

// Many short callbacks of one turn, none of them to blame by itself.
function saturated(ms) {
  const start = now();
  const kinds = [
    function countShelf() { busyUntil(after(SLICE_MS)); },
    function countBasket() { busyUntil(after(SLICE_MS)); },
    function countReturn() { busyUntil(after(SLICE_MS)); },
    function countPallet() { busyUntil(after(SLICE_MS)); },
    function countTruck() { busyUntil(after(SLICE_MS)); },
  ];
  return new Promise((done) => {
    for (let slice = 0; slice * SLICE_MS < ms; slice++) setImmediate(kinds[slice % kinds.length]);
    setImmediate(() => {
      write('saturated', start, now(), null, null);
      done();
    });
  });
}

function short() {
  return stall('short', 'reserveSeat', lineOf(reserveSeat), () => reserveSeat(SHORT_MS));
}

const ROUTES = {
  '/': () => 'hello',
  '/pause': (ms) => pause(ms),
  '/read': () => fs.promises.readFile(__filename),
  '/hash-aside': () => new Promise((done) => crypto.pbkdf2('a', 'b', 100000, 64, 'sha512', done)),
  '/short': short,
  // The loop's own count; older releases have none.
  '/turns': () => performance.nodeTiming.uvMetricsInfo?.loopCount,
  '/file': file,
  '/hash': hash,
  '/digest': digest,
  '/encrypt': encrypt,
  '/json': json,
  '/regex': regex,
  '/shell': shell,
  '/lock': lock,
  '/cpu': cpu,
  '/arrow': arrow,
  '/method': method,
  '/asynchronous': asynchronous,
  '/inlined': inlined,
  '/anonymous': anonymous,
  '/saturated': saturated,
};

// So often that V8 translates and optimises them.
function warmUp() {
  for (let round = 0; round < WARM_UP_ROUNDS; round++) {
    for (const work of [cpu, arrow, method, inlined, anonymous, regex, json]) work(0.2);
  }
}

function beat(last) {
  setTimeout(() => {
    const present = now();
    if (present - last > BigInt(HEARTBEAT_MS) * 1_000_000n + LAG_NOTED_NS) {
      write('lag', last, present, null, null);
    }
    beat(present);
  }, HEARTBEAT_MS);
}

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const work = ROUTES[pathname];
  const told = work && (await work(Number(searchParams.get('ms') ?? 300)));
  const body = pathname === '/turns' ? `${told}\n` : 'ok\n';
  response.writeHead(work ? 200 : 404, { 'Content-Length': body.length });
  response.end(body);
});
server.keepAliveTimeout = 120_000;

warmUp();
recording = true;
server.listen(0, '127.0.0.1', () => {
  beat(now());
  console.log(`ready ${server.address().port} ${process.pid}`);
});
process.on('SIGTERM', () => {
  fs.rmSync(folder, { recursive: true, force: true });
  process.exit(0);
});
