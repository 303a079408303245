import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { until } from './waiting.js';

const MAIN = fileURLToPath(new URL('./inbox-worker.mjs', import.meta.url));
const running = new Set<ChildProcess>();

/** A worker of `waybill/client` in a process of its own, which imports the built package by its name. */
export class WorkerProcess {
  readonly lines: string[] = [];
  readonly exited: Promise<number | null>;
  readonly #child: ChildProcess;

  constructor(env: { DATABASE_URL: string; CONSUMER: string; LEASE_MS?: string }) {
    const child = spawn(process.execPath, [MAIN], {
      env: { PATH: process.env['PATH'], ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    running.add(child);
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => this.lines.push(line));
    }
    this.exited = new Promise((resolve) => {
      child.once('close', (code) => {
        running.delete(child);
        resolve(code);
      });
    });
  }

  /** How many lines begin so. */
  count(start: string): number {
    return this.lines.filter((line) => line.startsWith(start)).length;
  }

  async waitFor(start: string, count = 1): Promise<void> {
    await until(() => this.count(start) >= count, {
      withinMs: 60_000,
      what: `${count} lines "${start}" of a worker; its last: ${this.lines.slice(-5).join(' | ')}`,
    });
  }

  async kill9(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exited;
  }

  /** SIGTERM, resolved with the exit code. */
  stop(): Promise<number | null> {
    this.#child.kill('SIGTERM');
    return this.exited;
  }
}

/** Kills what a failed test has left. */
export async function killWorkers(): Promise<void> {
  const gone = [...running].map((child) => new Promise((resolve) => child.once('close', resolve)));
  for (const child of running) child.kill('SIGKILL');
  await Promise.all(gone);
}
