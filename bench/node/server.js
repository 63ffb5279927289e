// server.js PORT COUNTS [alone|rr|none] [WORKERS]: the Node program of the benchmark. `alone` is a plain
// server (also under croupier, which it knows nothing of); `rr` and `none` are node:cluster by its two
// policies. Each process that serves tells what it counted as croupier-bench-worker does: a file named
// by its pid, written when it listens and at each SIGUSR2.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const cluster = require('node:cluster');

const [port, counts, how = 'alone', workers = '1'] = process.argv.slice(2);

function serve() {
  let connections = 0;
  let requests = 0;
  let asked = 0;
  const body = `${process.pid}\n`;
  const tell = () => {
    const partial = path.join(counts, `.${process.pid}`);
    fs.writeFileSync(partial, `${asked} ${connections} ${requests}\n`);
    fs.renameSync(partial, path.join(counts, `${process.pid}`));
  };
  const server = http.createServer((request, response) => {
    const [, kind, parameter] = request.url.split('/');
    const answer = () => {
      requests++;
      response.end(body);
    };
    if (kind === 'wait') {
      setTimeout(answer, Number(parameter));
    } else {
      if (kind === 'cpu') {
        const end = process.cpuUsage();
        let used = 0;
        while (used < Number(parameter)) {
          const now = process.cpuUsage(end);
          used = now.user + now.system;
        }
      }
      answer();
    }
  });
  server.on('connection', () => connections++);
  server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 }, tell);
  process.on('SIGUSR2', () => {
    asked++;
    tell();
  });
}

if (how === 'alone' || !cluster.isPrimary) {
  serve();
} else {
  cluster.schedulingPolicy = how === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  cluster.on('exit', (worker) => {
    if (!worker.exitedAfterDisconnect) cluster.fork();
  });
  for (let i = 0; i < Number(workers); i++) cluster.fork();
}
