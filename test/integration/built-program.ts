import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));

/** What a finished command left. */
export interface Finished {
  code: number | null;
  out: string;
  err: string;
}

/** A command that runs on; its output so far can be read at any time. */
export interface RunningProgram {
  child: ChildProcess;
  out: () => string;
  err: () => string;
  finished: Promise<Finished>;
}

/**
 * Builds dist/ from src/ unless it is newer, so that the tests run what users run. Why not always: another file's child
 * could read a module that is being written.
 */
export async function buildProgram(): Promise<void> {
  if (existsSync(MAIN) && statSync(MAIN).mtimeMs > newestSource()) return;
  await promisify(execFile)(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], {
    cwd: ROOT,
  });
}

function newestSource(): number {
  const source = join(ROOT, 'src');
  const files = readdirSync(source, { recursive: true, encoding: 'utf8' });
  return Math.max(...files.map((file) => statSync(join(source, file)).mtimeMs));
}

/** Starts `waybill` with these arguments and no other environment than PATH and what is given. */
export function startProgram(args: readonly string[], environment: Record<string, string>): RunningProgram {
  const child = spawn(process.execPath, [MAIN, ...args], {
    cwd: ROOT,
    env: { PATH: process.env['PATH'], ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()));
  const finished = new Promise<Finished>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, out, err }));
  });
  return { child, out: () => out, err: () => err, finished };
}

/** Runs `waybill` to its end. */
export function runProgram(args: readonly string[], environment: Record<string, string>): Promise<Finished> {
  return startProgram(args, environment).finished;
}
