import { amqpUnit } from './amqp-frames.js';
import { ByteQueue } from './byte-queue.js';
import { PostgresReader } from './postgres-messages.js';

/** The end of a connection that sent something. */
export type Sender = 'client' | 'server';

/** One AMQP frame or one PostgreSQL message, whole. */
export interface WireUnit {
  from: Sender;
  /** From general to special: "pg.server.xlogdata", "pg.server.xlogdata.commit". */
  names: string[];
  /** As on the wire. */
  bytes: Buffer;
  /** Without the framing. */
  body: Buffer;
}

/** Takes the next whole unit out of a queue, or undefined when it has not arrived completely. */
export type TakeUnit = (from: Sender, queue: ByteQueue) => WireUnit | undefined;

/** Cuts both directions of one connection into units; the client's first bytes tell which protocol it speaks. */
export class WireReader {
  readonly #queues: Record<Sender, ByteQueue> = { client: new ByteQueue(), server: new ByteQueue() };
  #take: TakeUnit | undefined;

  /** Adds what arrived and gives the units that are now whole. */
  push(from: Sender, chunk: Buffer): WireUnit[] {
    const queue = this.#queues[from];
    queue.push(chunk);
    if (!this.#take) {
      const start = this.#queues.client.peek(4);
      if (!start) return [];
      this.#take = protocolOf(start);
    }
    const units: WireUnit[] = [];
    for (let unit = this.#take(from, queue); unit; unit = this.#take(from, queue)) units.push(unit);
    return units;
  }
}

function protocolOf(start: Buffer): TakeUnit {
  if (start.toString('latin1') === 'AMQP') return amqpUnit;
  // A start-up packet begins with its length, at most 10000.
  if (start[0] === 0 && start[1] === 0) {
    const reader = new PostgresReader();
    return (from, queue) => reader.take(from, queue);
  }
  return rawUnit;
}

/** Whatever is there as one unit, for bytes that cannot be understood (TLS). */
export function rawUnit(from: Sender, queue: ByteQueue): WireUnit | undefined {
  if (queue.length === 0) return undefined;
  const bytes = queue.take(queue.length);
  return { from, names: [`raw.${from}`], bytes, body: bytes };
}
