import type pg from 'pg';

/** How much is there, in rows. A tenth of the inbox is not done. */
export interface Size {
  pending: number;
  history: number;
  inbox: number;
}

/** Rows at once; whoever looks sees it go on. */
const PART_ROWS = 500_000;

/**
 * Fills the tables of schema `waybill` as they are after a bad week: outbox and inbox with rows in every state, and a long
 * history. Indexes are built afterwards, because that takes a third of the time.
 */
export async function fillBacklog(client: pg.Client, { pending, history, inbox }: Size): Promise<void> {
  await client.query("set synchronous_commit = off; set maintenance_work_mem = '512MB'");
  await withoutIndexes(client, 'outbox', async () => {
    await insertHeld(client, 'parked', 20_000);
    await insertHeld(client, 'scheduled', 20_000);
    await inParts(pending, (from, to) =>
      client.query(
        `insert into waybill.outbox (type, key, state, payload)
         select 'bench', 'k' || i % 1000, 'ready', json_build_object('n', i, 'pad', repeat('x', 200))
         from generate_series($1::int, $2::int) i`,
        [from, to],
      ),
    );
  });
  await inParts(history, (from, to) =>
    client.query(
      `insert into waybill.outbox_history (outcome, id, type, key, settled_at)
       select 'published', gen_random_uuid(), case when i % 1000 = 0 then 'rare' else 'bench' end, 'k' || i % 1000,
         now() - interval '1 second' * (i % 600) from generate_series($1::int, $2::int) i`,
      [from, to],
    ),
  );
  for (const name of ['billing', 'mails', 'search', 'stock']) {
    await client.query(
      `insert into waybill.consumer (name, queue, handler, ordering) values ($1, $1, 'store', 'none')`,
      [name],
    );
  }
  await withoutIndexes(client, 'inbox', async () => {
    await inParts(inbox, (from, to) =>
      client.query(
        `insert into waybill.inbox (consumer, message_id, type, key, body, body_hash, status, dead_reason, next_attempt_at,
           failures, last_error, processed_at, received_at)
         select (array['billing', 'mails', 'search', 'stock'])[1 + i % 4], gen_random_uuid()::text,
           case when i % 1000 = 0 then 'rare' else 'bench' end, 'k' || i % 1000, '{"n": 1}', sha256('{"n": 1}'), s.status,
           case s.status when 'dead' then 'attempts' end, case s.status when 'waiting' then now() + interval '1 h' end,
           case when s.status in ('dead', 'waiting') then 8 else 0 end,
           case when s.status in ('dead', 'waiting') then 'no customer ' || i % 50 end,
           case when s.status in ('dead', 'done') then now() - interval '1 s' * (($3::int - i) / 10) end,
           now() - interval '1 s' * (($3::int - i) / 10)
         from generate_series($1::int, $2::int) i, lateral (select case
           when i / 4 % 50 = 0 then 'dead' when i / 4 % 50 = 1 then 'waiting'
           when i > $3::int * 0.96 then 'pending' when i > $3::int * 0.94 then 'blocked' else 'done' end as status) s`,
        [from, to, inbox],
      ),
    );
  });
  await client.query(
    `insert into waybill.inbox_attempt (inbox_seq, number, verdict, error)
     select seq, 1, 'retry', last_error from waybill.inbox where status = 'waiting'`,
  );
}

function insertHeld(client: pg.Client, state: string, rows: number): Promise<unknown> {
  return client.query(
    `insert into waybill.outbox (type, key, state, hold_no, next_attempt_at, last_error, payload)
     select 'bench', 'k' || i % 1000, $1::text, i, now() + interval '1 hour', 'no exchange ' || i % 7, '{}'
     from generate_series(1, $2::int) i`,
    [state, rows],
  );
}

async function inParts(rows: number, insert: (from: number, to: number) => Promise<unknown>): Promise<void> {
  for (let from = 1; from <= rows; from += PART_ROWS) await insert(from, Math.min(rows, from + PART_ROWS - 1));
}

async function withoutIndexes(client: pg.Client, table: string, fill: () => Promise<void>): Promise<void> {
  const { rows } = await client.query<{ name: string; sql: string }>(
    `select c.relname as name, pg_get_indexdef(i.indexrelid) as sql from pg_index i join pg_class c on c.oid = i.indexrelid
     where i.indrelid = $1::regclass and not exists (select from pg_constraint k where k.conindid = i.indexrelid)`,
    [`waybill.${table}`],
  );
  for (const { name } of rows) await client.query(`drop index waybill.${name}`);
  await fill();
  for (const { sql } of rows) await client.query(sql);
}
