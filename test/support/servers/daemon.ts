import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { until, within } from '../waiting.js';
import type { Scratch } from './scratch.js';

const run = promisify(execFile);

/** Who a server runs as: nothing for ourselves, ids for another user. */
export interface Account {
  uid?: number;
  gid?: number;
}

/** How to start one server process. */
export interface DaemonSpec {
  command: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  logFile: string;
  account?: Account;
}

/** A server ended because somebody else has taken one of its ports in between; another try with others may succeed. */
export class PortClash extends Error {}

/** One server process in a session of its own, under the watchdog of its scratch folder. */
export class Daemon {
  readonly pid: number;
  /** Resolves with "exit code 1" or "signal SIGKILL" when the process has ended. */
  readonly exited: Promise<string>;
  readonly #child: ChildProcess;
  readonly #logFile: string;

  private constructor(child: ChildProcess, pid: number, logFile: string, scratch: Scratch) {
    this.#child = child;
    this.#logFile = logFile;
    this.pid = pid;
    this.exited = once(child, 'exit').then(() => {
      scratch.forget(pid);
      return this.ending ?? '';
    });
  }

  /** Starts the process in the scratch folder; output is appended to its log file. */
  static async start(scratch: Scratch, spec: DaemonSpec): Promise<Daemon> {
    const log = await open(spec.logFile, 'a');
    try {
      const child = spawn(spec.command, spec.args, {
        cwd: scratch.folder,
        detached: true,
        env: spec.env,
        stdio: ['ignore', log.fd, log.fd],
        ...spec.account,
      });
      await once(child, 'spawn');
      const pid = child.pid!;
      scratch.watch(pid);
      child.unref();
      return new Daemon(child, pid, spec.logFile, scratch);
    } finally {
      await log.close();
    }
  }

  /** How the process ended, in words; undefined while it runs. */
  get ending(): string | undefined {
    if (this.#child.signalCode) return `signal ${this.#child.signalCode}`;
    return this.#child.exitCode === null ? undefined : `exit code ${this.#child.exitCode}`;
  }

  /** Sends a signal to the process itself; nothing when it has ended. */
  signal(name: NodeJS.Signals): void {
    if (this.ending === undefined) this.#child.kill(name);
  }

  /** Waits for the end of the process. */
  async gone(withinMs: number, what: string): Promise<void> {
    this.#child.ref();
    await within(this.exited, withinMs, what);
  }

  /** Freezes or kills the process with all its descendants; the process first, so that it starts no more. */
  async signalTree(name: 'SIGSTOP' | 'SIGCONT' | 'SIGKILL'): Promise<number[]> {
    if (name !== 'SIGCONT') this.signal('SIGSTOP');
    const tree = await descendants(this.pid);
    for (const pid of [...tree, this.pid]) {
      try {
        process.kill(pid, name);
      } catch {
        // It ended on its own meanwhile.
      }
    }
    return tree;
  }

  /** The error of a process that ended instead of starting: what was run, how it ended, what its log says. */
  async startFailure(): Promise<Error> {
    const log = await readFile(this.#logFile, 'utf8').catch(() => '');
    // Erlang says of its distribution port only that there is no distribution.
    const clash = /address already in use|eaddrinuse|nodistribution/i.test(log);
    const lines = log.trimEnd().split('\n');
    // RabbitMQ names the cause in its first error lines and prints pages after them; PostgreSQL ends with it.
    const causes = lines.filter((line) => /\[error\] <[\d.]+> \S/.test(line)).slice(0, 8);
    const shown = causes.length > 0 ? causes : lines.slice(-15);
    return new (clash ? PortClash : Error)(
      `Tried: ${this.#child.spawnargs.join(' ')}: ${this.ending ?? ''}\n${shown.join('\n')}`,
    );
  }
}

/** Waits until none of these processes runs any more; zombies count as ended. */
export async function allGone(pids: number[]): Promise<void> {
  const wanted = new Set(pids);
  await until(async () => (await processes()).every((p) => !wanted.has(p.pid) || p.state.startsWith('Z')), {
    what: `the end of processes ${pids.join(', ')}`,
  });
}

async function descendants(root: number): Promise<number[]> {
  const all = await processes();
  const found = [root];
  for (const pid of found) for (const p of all) if (p.parent === pid) found.push(p.pid);
  return found.slice(1);
}

async function processes(): Promise<{ pid: number; parent: number; state: string }[]> {
  const { stdout } = await run('ps', ['-A', '-o', 'pid=,ppid=,stat='], { maxBuffer: 1 << 24 });
  return stdout
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .map(([pid, parent, state]) => ({ pid: Number(pid), parent: Number(parent), state: state ?? '' }));
}
