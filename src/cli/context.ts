/** What a command may use of the world around it; src/main.ts gives the real one, tests give their own. */
export interface CliContext {
  environment: Readonly<Record<string, string | undefined>>;
  /** Name of the file and line ends included; throws like node:fs. */
  readFile: (path: string) => string;
  exists: (path: string) => boolean;
  /** Writes a file that is not there yet, with this mode; throws like node:fs, EEXIST included. */
  writeNew: (path: string, text: string, mode: number) => void;
  /** Results. */
  out: (text: string) => void;
  /** Problems and progress. */
  err: (text: string) => void;
  outIsTerminal: boolean;
  /** Lines that the terminal shows now. */
  outRows?: () => number | undefined;
  /** Signs that a line of the terminal holds now. */
  outColumns?: () => number | undefined;
  /** Asks on the terminal; undefined where nobody can answer. */
  ask: ((question: string) => Promise<string>) | undefined;
  /** From now on output that cannot be written, each time, is told to the listener, and no longer ends the process. */
  onOutputLost?: (listener: OutputListener) => void;
  /** Calls the listener for each SIGTERM, SIGINT and SIGHUP from now on. */
  onSignal: (listener: (name: NodeJS.Signals) => void) => void;
}

/** Told that something could not be written: to results, or to problems. */
export type OutputListener = (which: 'out' | 'err', error: NodeJS.ErrnoException) => void;

/** The exit codes of every command. */
export const EXIT = { ok: 0, failed: 1, usage: 2, schema: 3, check: 4 } as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];
