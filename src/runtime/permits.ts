import { WaybillError } from '../core/errors.js';

/** At most `count` pieces of work at once; those who wait are let in in the order of asking. */
export class Permits {
  #free: number;
  readonly #waiting = new Set<() => void>();

  constructor(count: number) {
    this.#free = count;
  }

  /** Resolves to the way to give the permit back, once; rejects with WAYBILL_STOPPED when `signal` aborts first. */
  async acquire(signal: AbortSignal): Promise<() => void> {
    if (signal.aborted) throw stopped();
    if (this.#free > 0) this.#free -= 1;
    else await this.#turn(signal);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#pass();
    };
  }

  #turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const enter = (): void => {
        this.#waiting.delete(enter);
        signal.removeEventListener('abort', leave);
        resolve();
      };
      const leave = (): void => {
        this.#waiting.delete(enter);
        reject(stopped());
      };
      this.#waiting.add(enter);
      signal.addEventListener('abort', leave, { once: true });
    });
  }

  /** A permit that comes back goes straight to whoever has waited longest, so that nobody slips in between. */
  #pass(): void {
    const [next] = this.#waiting;
    if (next) next();
    else this.#free += 1;
  }
}

function stopped(): WaybillError {
  return new WaybillError('WAYBILL_STOPPED', 'stopping');
}
