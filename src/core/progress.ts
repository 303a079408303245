/** One part of the work that must get on. `mark` is another value after each step forward. */
export interface Step {
  name: string;
  /** Whether there is something to do. A step that has nothing to do does not stall. */
  busy: boolean;
  mark: string | number | bigint;
  /** How much longer than the others it may rest, milliseconds. */
  graceMs?: number;
}

/** A step that has had something to do for so long without getting on. */
export interface Stall {
  step: string;
  forMs: number;
}

/**
 * Tells a step that rests from one that hangs. Pure: it is shown the steps from time to time, and remembers since when
 * each has something to do and the same mark. A hang is seen however it came about, also where nothing failed (F121).
 */
export class Progress {
  readonly #since = new Map<string, { mark: Step['mark']; atMs: number }>();

  /** Gives the step that has hung longest, if any has for more than `limitMs`. Times are monotonic milliseconds. */
  look(steps: readonly Step[], nowMs: number, limitMs: number): Stall | undefined {
    let worst: Stall | undefined;
    const names = new Set(steps.map(({ name }) => name));
    for (const name of this.#since.keys()) if (!names.has(name)) this.#since.delete(name);
    for (const { name, busy, mark, graceMs = 0 } of steps) {
      const known = this.#since.get(name);
      if (!busy || known?.mark !== mark) {
        this.#since.set(name, { mark, atMs: nowMs });
        continue;
      }
      const forMs = nowMs - known.atMs;
      if (forMs > limitMs + graceMs && forMs > (worst?.forMs ?? 0)) worst = { step: name, forMs };
    }
    return worst;
  }
}
