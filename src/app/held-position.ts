import type { RelayLog } from '../outbox/ports.js';

/** How often the rows that hold the position are looked at, milliseconds. */
export const HELD_POSITION_INTERVAL_MS = 10_000;
/** When rows that only the log has are told again, milliseconds. */
const TELL_AGAIN_MS = 600_000;

/** What of the settler is steered here. */
interface Settling {
  /** Rows to be held that keep their position back. */
  readonly keepingPosition: number;
  letHeldPass(lets: boolean): void;
}

/**
 * `maxKeptWal` beside a relay at work (3.4): rows that are to be set aside, and that somebody has locked or the table
 * refuses to change, hold the position, so that a row that is deleted meanwhile is written back, and so that a key keeps
 * its order over a restart. Past the limit the disk of the database comes first: rows that are in the table let the
 * position pass, and after a restart the sweep finds them there. The slot stays, and nothing is sent again for it.
 * Rows that only the log has hold it whatever it costs: they would be lost.
 */
export class HeldPosition {
  readonly #settler: Settling;
  readonly #keptWalBytes: () => Promise<number>;
  readonly #maxKeptWalBytes: number;
  readonly #log: RelayLog;
  readonly #nowMs: () => number;
  /** Since when rows pass. */
  #passingSinceMs: number | undefined;
  #toldAtMs: number | undefined;

  constructor(options: {
    settler: Settling;
    /** WAL that the server keeps for the slot, bytes. */
    keptWalBytes: () => Promise<number>;
    maxKeptWalBytes: number;
    log: RelayLog;
    /** Monotonic. */
    nowMs: () => number;
  }) {
    this.#settler = options.settler;
    this.#keptWalBytes = options.keptWalBytes;
    this.#maxKeptWalBytes = options.maxKeptWalBytes;
    this.#log = options.log;
    this.#nowMs = options.nowMs;
  }

  /** Asks the server only while rows hold the position. */
  async look(): Promise<void> {
    const rows = this.#settler.keepingPosition;
    const keptWalBytes = rows === 0 ? 0 : await this.#keptWalBytes();
    const isTooMuch = keptWalBytes > this.#maxKeptWalBytes;
    this.#settler.letHeldPass(isTooMuch);
    if (!isTooMuch) {
      this.#passingSinceMs = this.#toldAtMs = undefined;
      return;
    }
    const now = this.#nowMs();
    const facts = { rows, keptWalBytes, maxKeptWalBytes: this.#maxKeptWalBytes };
    if (this.#passingSinceMs === undefined) {
      this.#passingSinceMs = now;
      this.#log.error(
        facts,
        'the slot keeps more WAL than maxKeptWal for rows that cannot be set aside: those that are in the table hold it no longer, and are tried on; after a restart they are read from the table, and a key may lose its order',
      );
      return;
    }
    // What is refused is tried every 30 s; after that these are the rows that the log alone has.
    if (now - this.#passingSinceMs < 60_000 || now - (this.#toldAtMs ?? -Infinity) < TELL_AGAIN_MS) return;
    this.#toldAtMs = now;
    this.#log.error(
      facts,
      'the slot keeps more WAL than maxKeptWal for rows that only the log has: their application deleted them, they cannot go out, and the table does not take them back. Change or drop what refuses them (`waybill doctor` lists it) before the disk of the database is full',
    );
  }
}
