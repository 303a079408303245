import { connect, type Socket } from 'node:net';
import { ProxiedLane, type Flow, type Passage } from './proxied-lane.js';
import { WireReader, type Sender, type WireUnit } from './wire/units.js';

/** What a link does at a unit: one of the faults, or an answer in the place of the other end. */
export type LinkAction = 'cut-before' | 'cut-after' | 'stall-before' | 'stall-after' | { answer: Buffer };

/** Looks at a unit that is about to pass and says what to do there. */
export type Inspect = (unit: WireUnit, link: ProxiedLink) => LinkAction | undefined;

/** One connection through the fault proxy: two lanes of units that pass, stop or are dropped together. */
export class ProxiedLink {
  readonly #lanes: Record<Sender, ProxiedLane>;
  readonly #reader = new WireReader();
  readonly #inspected = new WeakSet<WireUnit>();
  readonly #inspect: Inspect;
  #stalled = false;
  #over = false;

  constructor(client: Socket, target: { port: number; host: string }, inspect: Inspect) {
    this.#inspect = inspect;
    const server = connect({ ...target, noDelay: true });
    const isOpen = (): boolean => !this.#over && !this.#stalled;
    const look = (unit: WireUnit): Passage => this.#look(unit);
    this.#lanes = {
      client: new ProxiedLane(client, server, isOpen, look),
      server: new ProxiedLane(server, client, isOpen, look),
    };
    for (const sender of ['client', 'server'] as const) {
      const lane = this.#lanes[sender];
      lane.from.on('error', () => this.destroy());
      lane.from.on('close', () => lane.pump());
      lane.from.on('end', () => {
        lane.ended = true;
        lane.pump();
      });
      lane.from.on('data', (chunk: Buffer) => {
        lane.push(this.#reader.push(sender, chunk));
        lane.pump();
      });
      lane.to.on('drain', () => lane.pump());
    }
    client.resume();
  }

  /** Ends the connection for both sides; what has passed still arrives, what is held is lost. */
  cut(): void {
    this.#over = true;
    for (const lane of Object.values(this.#lanes)) {
      lane.clear();
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
    for (const lane of Object.values(this.#lanes)) lane.pump();
  }

  /** Sets the latency and the flow of both lanes, for what arrives from now on. */
  shape(delayMs: number, flow: Flow): void {
    for (const lane of Object.values(this.#lanes)) {
      lane.delayMs = delayMs;
      lane.flow = flow;
      lane.pump();
    }
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
    for (const lane of Object.values(this.#lanes)) {
      lane.clear();
      lane.from.destroy();
    }
  }

  #look(unit: WireUnit): Passage {
    // A unit that a stall held back was already counted.
    const action = this.#inspected.has(unit) ? undefined : this.#inspect(unit, this);
    this.#inspected.add(unit);
    if (action === undefined) return { unit: 'passes' };
    if (typeof action === 'object') {
      return { unit: 'is dropped', then: () => this.#answer(this.#lanes[unit.from], action.answer) };
    }
    const then = (): void => (action.startsWith('cut') ? this.cut() : this.stall());
    return { unit: action.endsWith('after') ? 'passes' : 'stays', then };
  }

  /** The sender gets these bytes as if from the other end, which is cut off; nothing that it sends is heard any more. */
  #answer({ from, to }: ProxiedLane, bytes: Buffer): void {
    this.#over = true;
    for (const lane of Object.values(this.#lanes)) lane.clear();
    to.destroy();
    from.resume();
    from.write(bytes);
  }
}
