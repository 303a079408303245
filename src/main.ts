#!/usr/bin/env node
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline/promises';
import { EXIT, type OutputListener } from './cli/context.js';
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

// The reader of a pipe may leave early (`waybill status | head`). A command that goes on without one says so.
let onOutputLost: OutputListener | undefined;
for (const [which, stream] of [
  ['out', process.stdout],
  ['err', process.stderr],
] as const) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (onOutputLost) {
      onOutputLost(which, error);
      return;
    }
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
  onOutputLost: (listener) => (onOutputLost = listener),
  onSignal: (listener) => {
    for (const name of HANDLED_SIGNALS) process.on(name, listener);
  },
});
process.stdout.write('', () => endWith(code));
