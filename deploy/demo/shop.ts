import { randomInt, randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';

/** What the shop remembers of a committed order, to compare what arrives with it. */
export interface PlacedOrder {
  body: string;
  /** Just before COMMIT was sent, so that a message cannot seem to arrive earlier. */
  committedAtMs: number;
  /** Whether nothing was broken at that time. */
  calm: boolean;
}

/** One order in this many is rolled back, after its message was written. */
const ROLL_BACK_ONE_IN = 10;
const CUSTOMERS = ['Ada', 'Zoë', 'Łukasz', '小林', 'Grace "G" O\'Neil', '🚢 & Sons'];

/**
 * A small order application as any service could be: it writes an order and its message in one transaction, and then
 * commits or rolls back both. It knows PostgreSQL only.
 */
export class Shop {
  /** By message id; what the database itself holds is asked at the end with `committedIds`. */
  readonly committed = new Map<string, PlacedOrder>();
  readonly rolledBack = new Set<string>();
  /** Written by the story: false while something is broken. */
  calm = true;
  /** Written by the story; orders a second, of all writers together. */
  rate = 0;
  readonly #url: string;
  #open = true;
  #writers: Promise<unknown> = Promise.resolve();

  constructor(url: string) {
    this.#url = url;
  }

  /** Starts the writers; `close` or the rejection of its promise is their end. */
  start(writers: number): void {
    this.#writers = Promise.all(Array.from({ length: writers }, () => this.#write(writers)));
    this.#writers.catch(() => undefined);
  }

  /** Rejects when a writer has failed. */
  get ended(): Promise<unknown> {
    return this.#writers;
  }

  /** Lets each writer end its transaction, and stops. */
  async close(): Promise<void> {
    this.#open = false;
    await this.#writers;
  }

  /** Sum of all orders in the database, with two decimals. */
  async total(): Promise<string> {
    return this.#once(async (client) => {
      const { rows } = await client.query<{ total: string }>(
        'select coalesce(sum(total), 0)::numeric(20, 2)::text as total from orders',
      );
      return rows[0]!.total;
    });
  }

  /** Numbers for orders that will be placed later with `placeReserved`. */
  async reserve(orders: number): Promise<string[]> {
    return this.#once(async (client) => {
      const { rows } = await client.query<{ number: string }>(
        "select nextval('orders_number_seq')::text as number from generate_series(1, $1)",
        [orders],
      );
      return rows.map((row) => row.number);
    });
  }

  async placeReserved(numbers: readonly string[]): Promise<void> {
    await this.#once(async (client) => {
      for (const number of numbers) await this.#placeOrder(client, number);
    });
  }

  /** Message ids of the orders that are in the database: the truth that deliveries are held against. */
  async committedIds(): Promise<Set<string>> {
    return this.#once(async (client) => {
      const { rows } = await client.query<{ message_id: string }>('select message_id from orders');
      return new Set(rows.map((row) => row.message_id));
    });
  }

  async #once<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    const client = await this.#connect();
    try {
      return await work(client);
    } finally {
      await client.end();
    }
  }

  async #connect(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: this.#url });
    // Why: an unheard error would end the process; the next query fails with it anyway.
    client.on('error', () => undefined);
    await client.connect();
    return client;
  }

  async #write(writers: number): Promise<void> {
    const client = await this.#connect();
    let next = performance.now() + randomInt(50);
    while (this.#open) {
      const pauseMs = (writers * 1000) / Math.max(this.rate, 0.1);
      next = Math.max(next + pauseMs, performance.now() - 1000);
      await delay(Math.min(next - performance.now(), 250));
      if (this.rate > 0 && performance.now() >= next - 5) await this.#placeOrder(client);
      else next -= pauseMs;
    }
    await client.end();
  }

  /** A reserved number is never rolled back. */
  async #placeOrder(client: pg.Client, reserved?: string): Promise<void> {
    const id = randomUUID();
    const customer = CUSTOMERS[randomInt(CUSTOMERS.length)]!;
    const total = `${randomInt(1, 500)}.${randomInt(10)}0`;
    await client.query('begin');
    const inserted = await client.query<{ number: string }>(
      `insert into orders (number, message_id, customer, total) overriding system value
       values (coalesce($4, nextval('orders_number_seq')), $1, $2, $3) returning number`,
      [id, customer, total, reserved ?? null],
    );
    const number = inserted.rows[0]!.number;
    // The text is carried byte for byte, so the price keeps its last zero.
    const body = `{"order": ${number}, "total": ${total}, "customer": ${JSON.stringify(customer)}}`;
    await client.query('select waybill.publish($1, $2, key => $3, id => $4)', [
      'order.placed',
      body,
      `order-${number}`,
      id,
    ]);
    if (reserved === undefined && randomInt(ROLL_BACK_ONE_IN) === 0) {
      this.rolledBack.add(id);
      await client.query('rollback');
      return;
    }
    const order = { body, committedAtMs: performance.now(), calm: this.calm };
    await client.query('commit');
    this.committed.set(id, order);
  }
}
