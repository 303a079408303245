import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { until } from './waiting.js';

const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));

/** One line of the relay's JSON log. */
export interface LogLine {
  level: string;
  msg: string;
  [field: string]: unknown;
}

export interface RelayProcess {
  readonly pid: number;
  readonly log: readonly LogLine[];
  /** Everything it wrote that is not a JSON line, standard error included. */
  readonly noise: readonly string[];
  /** Waits until it streams (or, with another phase, until it is there); resolves with that line's position in the log. */
  waitForPhase(phase: string, withinMs?: number): Promise<void>;
  /** The last phase it entered. */
  phase(): string | undefined;
  /** Waits for a log line for which the test holds; looks at old lines too. */
  waitForLog(matches: (line: LogLine) => boolean, what: string, withinMs?: number): Promise<LogLine>;
  signal(signal: NodeJS.Signals): void;
  /** SIGKILL, resolved when it is gone. */
  kill9(): Promise<void>;
  /** SIGTERM, resolved with the exit code. */
  stop(): Promise<number | null>;
  readonly exited: Promise<number | null>;
}

export interface RelayProcessOptions {
  databaseUrl: string;
  brokerUrl: string;
  /** Further settings by environment name. */
  env?: Record<string, string>;
}

const running = new Set<ChildProcess>();

/** Starts the built program's `run` as a child process, as an operator would, with settings by environment. */
export function startRelay({ databaseUrl, brokerUrl, env = {} }: RelayProcessOptions): RelayProcess {
  if (!existsSync(MAIN)) throw new Error('the program is not built: npm run build');
  const child = spawn(process.execPath, [MAIN, 'run'], {
    env: {
      PATH: process.env['PATH'],
      WAYBILL_DATABASE_URL: databaseUrl,
      WAYBILL_BROKER_URL: brokerUrl,
      WAYBILL_LOG_FORMAT: 'json',
      WAYBILL_LOG_LEVEL: 'debug',
      // Many run at once here; a test that looks at it takes a free port.
      WAYBILL_ADMIN_LISTEN: 'off',
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running.add(child);
  const log: LogLine[] = [];
  const noise: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => {
    try {
      log.push(JSON.parse(line) as LogLine);
    } catch {
      noise.push(line);
    }
  });
  createInterface({ input: child.stderr }).on('line', (line) => noise.push(line));
  const exited = new Promise<number | null>((resolve) =>
    child.once('close', (code) => {
      running.delete(child);
      resolve(code);
    }),
  );
  const phases = (): LogLine[] => log.filter((line) => line.msg === 'phase');
  const tail = (): string => [...log.slice(-12).map((line) => JSON.stringify(line)), ...noise.slice(-12)].join('\n');
  const waitForLog = async (matches: (line: LogLine) => boolean, what: string, withinMs = 20_000): Promise<LogLine> => {
    try {
      return await until(() => log.find(matches), { withinMs, what });
    } catch (error) {
      throw new Error(`${String(error)}\nThe relay's last lines:\n${tail()}`);
    }
  };
  return {
    pid: child.pid ?? 0,
    log,
    noise,
    exited,
    waitForLog,
    phase: () => phases().at(-1)?.['phase'] as string | undefined,
    async waitForPhase(phase, withinMs = 20_000) {
      try {
        await until(() => phases().at(-1)?.['phase'] === phase, { withinMs, what: `the relay to be ${phase}` });
      } catch (error) {
        throw new Error(`${String(error)}\nThe relay's last lines:\n${tail()}`);
      }
    },
    signal: (signal) => void child.kill(signal),
    async kill9() {
      child.kill('SIGKILL');
      await exited;
    },
    async stop() {
      child.kill('SIGTERM');
      return exited;
    },
  };
}

/** Kills the relays that a test left behind; for afterEach. */
export async function killRelays(): Promise<void> {
  await Promise.all(
    [...running].map(
      (child) =>
        new Promise<void>((resolve) => {
          child.once('close', () => resolve());
          child.kill('SIGKILL');
        }),
    ),
  );
}
