import { execFile, type ExecFileException } from 'node:child_process';
import { formsOf } from '../config/urls.js';
import { WaybillError } from '../core/errors.js';
import { knownSecrets } from '../telemetry/redact.js';

const LIMIT_MS = 10_000;
const MOST_BYTES = 64 * 1024;

const CODES = { database: 'WAYBILL_DATABASE_REFUSED', broker: 'WAYBILL_BROKER_REFUSED' } as const;

/**
 * Gives, at each call, what the command prints for the host and user of this URL: no shell, at most 10 s, white space
 * around it taken away. It is among the known secrets before anybody gets it. What the command writes to standard error
 * is thrown away, because it may hold secrets that nobody knows of.
 */
export function passwordFrom(
  [program, ...args]: readonly [string, ...string[]],
  side: keyof typeof CODES,
  urlText: string,
  defaultPort: number,
  limitMs = LIMIT_MS,
): () => Promise<string> {
  const url = new URL(urlText);
  const values: Readonly<Record<string, string>> = {
    '{host}': decodeURIComponent(url.searchParams.get('host') ?? url.hostname).replace(/^\[(.*)\]$/, '$1'),
    '{port}': url.searchParams.get('port') ?? (url.port || String(defaultPort)),
    '{user}': url.searchParams.get('user') ?? decodeURIComponent(url.username),
  };
  const filled = args.map((arg) => arg.replaceAll(/\{(?:host|port|user)\}/g, (name) => values[name] ?? name));
  const failed = (why: string): WaybillError =>
    new WaybillError(CODES[side], `${side}.passwordCommand (${program}) ${why}`, {
      hint: 'Run it by hand as the user that runs Waybill: it must print the password, and nothing else, within 10 s.',
    });
  return () =>
    new Promise((resolve, reject) => {
      const limits = { timeout: limitMs, maxBuffer: MOST_BYTES, killSignal: 'SIGKILL' as const };
      const end = (error: ExecFileException | null, stdout: string): void => {
        const password = stdout.trim();
        if (error) reject(failed(reasonOf(error, limitMs)));
        else if (password === '') reject(failed('printed nothing'));
        else if (/[\0\r\n]/.test(password)) reject(failed('printed more than one line'));
        else {
          knownSecrets.add(formsOf(password));
          resolve(password);
        }
      };
      try {
        const child = execFile(program, filled, limits, end);
        // A program that reads its input must not wait for one.
        child.stdin?.on('error', () => undefined);
        child.stdin?.end();
      } catch (error) {
        reject(failed(reasonOf(error as ExecFileException, limitMs)));
      }
    });
}

/** Why without the error's message: it repeats the arguments. */
function reasonOf(error: ExecFileException, limitMs: number): string {
  const code: unknown = error.code;
  if (code === 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER') return 'printed more than a password';
  if (error.killed) return `took longer than ${limitMs / 1000} s`;
  if (typeof code === 'number') return `ended with exit code ${code}`;
  if (typeof code === 'string') return `could not be started (${code})`;
  return `was ended by ${error.signal ?? 'something unknown'}`;
}
