import type { Socket } from 'node:net';
import type { WireUnit } from './wire/units.js';

/** How bytes are handed on: as they come, gathered into one large chunk, or one byte at a time. */
export type Flow = 'as-it-comes' | 'burst' | 'dribble';

/** What becomes of one unit that is about to pass, and what happens right after. */
export interface Passage {
  unit: 'passes' | 'stays' | 'is dropped';
  then?: () => void;
}

/** A burst goes out when its sender has paused for so long, or has sent so much. */
const BURST_PAUSE_MS = 20;
const BURST_BYTES = 256 * 1024;
/** What is under way in a slow lane; then the sender has to wait. */
const MAX_HELD_BYTES = 16 * 1024 * 1024;

interface Held {
  unit: WireUnit;
  dueMs: number;
}

/** One direction of a proxied connection: units go out in order, late, in bursts or byte by byte as they are told to. */
export class ProxiedLane {
  /** Milliseconds between the arrival of a unit and its passing. */
  delayMs = 0;
  flow: Flow = 'as-it-comes';
  /** The sender has ended its side. */
  ended = false;
  #held: Held[] = [];
  #heldBytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #quietAtMs = 0;
  #pumping = false;
  /** What is left of the unit that is written byte by byte. */
  #dribble: Buffer | undefined;

  constructor(
    readonly from: Socket,
    readonly to: Socket,
    /** Whether anything may pass now. */
    private readonly isOpen: () => boolean,
    /** Asked once for each unit as it is about to pass. */
    private readonly inspect: (unit: WireUnit) => Passage,
  ) {}

  push(units: readonly WireUnit[]): void {
    const now = performance.now();
    for (const unit of units) {
      this.#held.push({ unit, dueMs: now + this.delayMs });
      this.#heldBytes += unit.bytes.length;
    }
    this.#quietAtMs = now + BURST_PAUSE_MS;
  }

  /** Forgets what has not passed. */
  clear(): void {
    this.#held = [];
    this.#heldBytes = 0;
    this.#dribble = undefined;
    clearTimeout(this.#timer);
  }

  /** Hands on what may pass now. */
  pump(): void {
    // A test that acts at a unit may come back here before that unit has passed.
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      this.#handOn();
    } finally {
      this.#pumping = false;
    }
    this.#steer();
  }

  #handOn(): void {
    clearTimeout(this.#timer);
    let burst: Buffer[] = [];
    const hand = (bytes: Buffer, inOnePiece: boolean): void => {
      if (this.flow === 'burst') burst.push(bytes);
      else if (this.flow === 'dribble' && !inOnePiece) this.#startDribble(bytes);
      else this.to.write(bytes);
    };
    const writeBurst = (): void => {
      if (burst.length > 0) this.to.write(Buffer.concat(burst));
      burst = [];
    };
    while (this.isOpen() && !this.#dribble && !this.to.writableNeedDrain) {
      const head = this.#held[0];
      const waitMs = head ? this.#waitMs(head) : 0;
      if (waitMs > 0) this.#timer = setTimeout(() => this.pump(), waitMs);
      if (!head || waitMs > 0) break;
      const { unit, then } = this.inspect(head.unit);
      if (unit !== 'stays') {
        this.#held.shift();
        this.#heldBytes -= head.unit.bytes.length;
      }
      if (unit === 'passes') hand(head.unit.bytes, then !== undefined);
      if (!then) continue;
      writeBurst();
      then();
    }
    writeBurst();
  }

  #waitMs(head: Held): number {
    const now = performance.now();
    const burstMs = this.flow === 'burst' && this.#heldBytes < BURST_BYTES ? this.#quietAtMs - now : 0;
    // Rounded up, because a timer may come a fraction early.
    return Math.ceil(Math.max(head.dueMs - now, burstMs));
  }

  #startDribble(bytes: Buffer): void {
    this.#dribble = bytes;
    const step = (): void => {
      const rest = this.#dribble;
      if (!rest) return;
      // What was let pass passes whole, also when a stall begins in the middle of it.
      this.to.write(rest.subarray(0, 1));
      this.#dribble = rest.length > 1 ? rest.subarray(1) : undefined;
      if (this.#dribble) setImmediate(step);
      else this.pump();
    };
    step();
  }

  #steer(): void {
    if (!this.isOpen()) return;
    const waits = this.#held.length > 0 || this.#dribble !== undefined;
    const slow = this.delayMs > 0 || this.flow !== 'as-it-comes';
    if (waits && (!slow || this.#heldBytes > MAX_HELD_BYTES)) this.from.pause();
    else if (!waits && (this.ended || this.from.destroyed)) this.to.end();
    else this.from.resume();
  }
}
