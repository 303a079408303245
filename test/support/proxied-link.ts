import { connect, type Socket } from 'node:net';
import { WireReader, type Sender, type WireUnit } from './wire/units.js';

/** Looks at a unit that is about to pass and says what to do there. */
export type Inspect = (
  unit: WireUnit,
  link: ProxiedLink,
) => 'cut-before' | 'cut-after' | 'stall-before' | 'stall-after' | undefined;

interface Lane {
  from: Socket;
  to: Socket;
  /** Whole units that have not passed. */
  held: WireUnit[];
  /** The sender has ended its side. */
  ended: boolean;
}

/** One connection through the fault proxy: two lanes of units that pass, stop or are dropped together. */
export class ProxiedLink {
  readonly #lanes: Record<Sender, Lane>;
  readonly #reader = new WireReader();
  readonly #inspected = new WeakSet<WireUnit>();
  readonly #inspect: Inspect;
  #stalled = false;
  #over = false;

  constructor(client: Socket, target: { port: number; host: string }, inspect: Inspect) {
    this.#inspect = inspect;
    const server = connect({ ...target, noDelay: true });
    this.#lanes = {
      client: { from: client, to: server, held: [], ended: false },
      server: { from: server, to: client, held: [], ended: false },
    };
    for (const sender of ['client', 'server'] as const) {
      const lane = this.#lanes[sender];
      lane.from.on('error', () => this.destroy());
      lane.from.on('close', () => this.#pump(lane));
      lane.from.on('end', () => {
        lane.ended = true;
        this.#pump(lane);
      });
      lane.from.on('data', (chunk: Buffer) => {
        lane.held.push(...this.#reader.push(sender, chunk));
        this.#pump(lane);
      });
      lane.to.on('drain', () => this.#pump(lane));
    }
    client.resume();
  }

  /** Ends the connection for both sides; what has passed still arrives, what is held is lost. */
  cut(): void {
    this.#over = true;
    for (const lane of Object.values(this.#lanes)) {
      lane.held = [];
      const { to } = lane;
      if (to.writableLength === 0) to.destroy();
      else to.end(() => to.destroy());
    }
  }

  /** Lets nothing pass until `resume`; also an end of one side is not told to the other. */
  stall(): void {
    this.#stalled = true;
    for (const lane of Object.values(this.#lanes)) lane.from.pause();
  }

  /** Ends a stall. */
  resume(): void {
    this.#stalled = false;
    for (const lane of Object.values(this.#lanes)) this.#pump(lane);
  }

  /** Calls back when both sockets are closed. */
  onceEnded(callback: () => void): void {
    let open = 2;
    const one = (): void => {
      if (--open === 0) callback();
    };
    for (const lane of Object.values(this.#lanes)) lane.from.once('close', one);
  }

  /** Ends the connection at once. */
  destroy(): void {
    this.#over = true;
    for (const lane of Object.values(this.#lanes)) lane.from.destroy();
  }

  #pump(lane: Lane): void {
    while (!this.#over && !this.#stalled && lane.held.length > 0 && !lane.to.writableNeedDrain) {
      const unit = lane.held.shift()!;
      // A unit that a stall held back was already counted.
      const action = this.#inspected.has(unit) ? undefined : this.#inspect(unit, this);
      this.#inspected.add(unit);
      if (action?.endsWith('before')) lane.held.unshift(unit);
      else lane.to.write(unit.bytes);
      if (action?.startsWith('cut')) this.cut();
      if (action?.startsWith('stall')) this.stall();
    }
    if (this.#over || this.#stalled) return;
    if (lane.held.length > 0) lane.from.pause();
    else if (lane.ended || lane.from.destroyed) lane.to.end();
    else lane.from.resume();
  }
}
