import type pg from 'pg';

/** One delivery for `waybill.inbox_receive`; `body` is its bytes (default `{}`). */
export interface Arrival {
  message_id: string;
  body?: string | Buffer;
  [property: string]: unknown;
}

/** What `waybill.inbox_receive` says of one delivery. */
export interface Received {
  ordinal: number;
  outcome: 'inserted' | 'duplicate' | 'conflict';
  seq: string;
  status: string;
  verdict: string | null;
  attempt: number | null;
  next_attempt_at: Date | null;
  dead_reason: string | null;
  error: string | null;
}

/** A row as `waybill.inbox_claim` hands it out; the columns that tests look at. */
export interface Claimed {
  seq: string;
  claim_token: string;
  attempt: number;
  message_id: string;
  key: string | null;
  lease_until: Date;
  body: Buffer;
}

type Queries = Pick<pg.ClientBase, 'query'>;

/** Registers consumers as one configuration; queue and name are the same unless said. */
export async function register(
  client: Queries,
  ...consumers: ({ name: string } & Record<string, unknown>)[]
): Promise<{ name: string; action: string }[]> {
  const all = consumers.map((consumer) => ({ queue: consumer.name, ...consumer }));
  const { rows } = await client.query<{ name: string; action: string }>(
    'select * from waybill.register_consumers($1)',
    [JSON.stringify(all)],
  );
  return rows;
}

/** Delivers a batch to a consumer in one statement. */
export async function receive(client: Queries, consumer: string, arrivals: readonly Arrival[]): Promise<Received[]> {
  const bodies = arrivals.map(({ body }) => Buffer.from(body ?? '{}'));
  const messages = arrivals.map((arrival, index) => ({ ...arrival, body: undefined, size: bodies[index]?.length }));
  const { rows } = await client.query<Received>('select * from waybill.inbox_receive($1, $2, $3) order by ordinal', [
    consumer,
    JSON.stringify(messages),
    Buffer.concat(bodies),
  ]);
  return rows;
}

/** Claims rows as a worker does. */
export async function claim(client: Queries, consumer: string, max = 10, lease = '1 minute'): Promise<Claimed[]> {
  return (await client.query<Claimed>('select * from waybill.inbox_claim($1, $2, $3)', [consumer, max, lease])).rows;
}

/** The statuses of a consumer's rows by message id. */
export async function statuses(client: Queries, consumer: string): Promise<Record<string, string>> {
  const { rows } = await client.query<{ message_id: string; status: string }>(
    'select message_id, status from waybill.inbox where consumer = $1 order by seq',
    [consumer],
  );
  return Object.fromEntries(rows.map((row) => [row.message_id, row.status]));
}
