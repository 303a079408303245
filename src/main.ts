#!/usr/bin/env node
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline/promises';
import { EXIT } from './cli/context.js';
import { formatFailure } from './cli/failure.js';
import { runCli } from './cli/program.js';

const HANDLED_SIGNALS: readonly NodeJS.Signals[] = ['SIGTERM', 'SIGINT', 'SIGHUP'];

/** Ends the process by the code; what was written to a pipe or terminal is out by then. */
function endWith(code: number): never {
  process.exit(code);
}

// What nobody caught is a defect: say it and end, so that the supervisor starts a clean process (F122).
for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, (error: unknown) => {
    const text = formatFailure(error, { verbose: true });
    process.stderr.write(text, () => endWith(EXIT.failed));
  });
}

// The reader of a pipe may leave early (`waybill status | head`).
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') endWith(EXIT.ok);
    throw error;
  });
}

async function ask(question: string): Promise<string> {
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return await lines.question(question);
  } finally {
    lines.close();
  }
}

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

const code = await runCli(process.argv.slice(2), version, {
  environment: process.env,
  readFile: (path) => readFileSync(path, 'utf8'),
  exists: existsSync,
  writeNew: (path, text, mode) => writeFileSync(path, text, { flag: 'wx', mode }),
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
  outIsTerminal: process.stdout.isTTY,
  outRows: () => process.stdout.rows,
  outColumns: () => process.stdout.columns,
  ask: process.stdin.isTTY ? ask : undefined,
  onSignal: (listener) => {
    for (const name of HANDLED_SIGNALS) process.on(name, listener);
  },
});
process.stdout.write('', () => endWith(code));
