import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readConsumers } from '../../src/postgres/inbox-backlog.js';
import { InboxStore } from '../../src/postgres/inbox-store.js';
import { loadMigrations, migrateUp } from '../../src/postgres/migrations.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { claim, receive, register } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';

/** The migration from which on deaths are noted row by row. */
const VERSION = loadMigrations().find(({ name }) => name === 'dead_copies')!.version;

let database: FreshDatabase;
let client: pg.Client;
let other: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  other = await database.connect();
});
afterAll(() => database.drop());
beforeEach(async () => {
  await client.query(
    'truncate waybill.inbox, waybill.inbox_attempt, waybill.inbox_uncopied, waybill.consumer, waybill.consumer_grant',
  );
  await register(client, { name: 'billing' });
});

interface Claimed {
  seq: string;
  died_at: string;
}

const die = (...ids: string[]) =>
  receive(
    client,
    'billing',
    ids.map((message_id) => ({ message_id, dead_reason: 'never' })),
  );

/** Claims deaths as a program does; gives their message ids, and the deaths for what is said of them afterwards. */
async function take(by = client, rows = 100, bytes = 1_000_000): Promise<{ ids: string[]; deaths: Claimed[] }> {
  const { rows: deaths } = await by.query<Claimed & { message_id: string }>(
    `select c.seq::text, c.died_at::text, i.message_id
     from waybill.inbox_deaths_claim('billing', $1, $2, '1 minute') c join waybill.inbox i on i.seq = c.seq
     order by c.died_at, c.seq`,
    [rows, bytes],
  );
  return { ids: deaths.map(({ message_id }) => message_id), deaths };
}

const say = (what: 'done' | 'keep', deaths: Claimed[], more = '', by = client) =>
  by.query(`select waybill.inbox_deaths_${what}('billing', $1, $2 ${more})`, [
    deaths.map(({ seq }) => seq),
    deaths.map(({ died_at }) => died_at),
  ]);

const uncopied = async (): Promise<string[]> =>
  (
    await client.query<{ id: string }>(
      `select coalesce(i.message_id, 'gone') as id from waybill.inbox_uncopied u
       left join waybill.inbox i on i.seq = u.inbox_seq order by 1`,
    )
  ).rows.map(({ id }) => id);

const leasesEnd = () => client.query(`update waybill.inbox_uncopied set claimed_until = clock_timestamp()`);

describe('F17: deaths to be copied', () => {
  test.each(['while the later one is copied', 'afterwards'])('an older death that is committed %s', async (when) => {
    await receive(client, 'billing', [{ message_id: 'older' }, { message_id: 'later' }]);
    const [older, later] = await claim(client, 'billing');
    await other.query('begin');
    await other.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [older?.seq, older?.claim_token]);
    await client.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [later?.seq, later?.claim_token]);
    const first = await take();
    expect(first.ids).toEqual(['later']);
    if (when !== 'afterwards') await other.query('commit');
    await say('done', first.deaths);
    if (when === 'afterwards') await other.query('commit');
    const times = await client.query(`select message_id from waybill.inbox order by processed_at`);
    expect(times.rows).toEqual([{ message_id: 'older' }, { message_id: 'later' }]);
    expect((await take()).ids).toEqual(['older']);
  });

  test('an older one, too, by a program of the version before, and only what it was shown counts as copied', async () => {
    await receive(client, 'billing', [{ message_id: 'older' }, { message_id: 'later' }]);
    const [older, later] = await claim(client, 'billing');
    const shown = async () =>
      (await client.query<{ message_id: string }>(`select * from waybill.inbox_deaths('billing')`)).rows.map(
        ({ message_id }) => message_id,
      );
    await other.query('begin');
    await other.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [older?.seq, older?.claim_token]);
    await client.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [later?.seq, later?.claim_token]);
    expect(await shown()).toEqual(['later']);
    await other.query('commit');
    await client.query(
      `select waybill.inbox_deaths_copied(consumer, processed_at, seq) from waybill.inbox where message_id = 'later'`,
    );
    expect(await shown()).toEqual(['older']);
    // A newer program beside it takes over what the older one has left.
    expect((await take()).ids).toEqual(['older']);
    expect(await shown()).toEqual([]);
  });

  test('two programs claim different ones, neither waits, and what one leaves behind is free after the lease', async () => {
    await die('a', 'b', 'c');
    await other.query('begin');
    expect((await take(other, 2)).ids).toEqual(['a', 'b']);
    expect((await take()).ids).toEqual(['c']);
    await other.query('commit');
    expect((await take()).ids).toEqual([]);
    await leasesEnd();
    expect((await take()).ids).toEqual(['a', 'b', 'c']);
  });

  test('what is given back is free at once; what is put off, after its delay', async () => {
    await die('a', 'b');
    const { deaths } = await take();
    await say('keep', deaths.slice(0, 1));
    await say('keep', deaths.slice(1), `, '1 hour', true`);
    expect((await take()).ids).toEqual(['a']);
    await leasesEnd();
    expect((await take()).ids).toEqual(['a', 'b']);
    expect((await client.query('select refused from waybill.inbox_uncopied order by inbox_seq')).rows).toEqual([
      { refused: 0 },
      { refused: 1 },
    ]);
  });

  test('bodies and headers are bounded together; one that is larger goes alone', async () => {
    const body = Buffer.alloc(3_000);
    await receive(
      client,
      'billing',
      ['a', 'b', 'c', 'd'].map((message_id) => ({
        message_id,
        dead_reason: 'never',
        body: message_id === 'd' ? Buffer.alloc(50_000) : body,
        headers: { filling: 'x'.repeat(2_000) },
      })),
    );
    const sizes: string[][] = [];
    while (sizes.length < 10) {
      const { ids } = await take(client, 100, 11_000);
      if (ids.length === 0) break;
      sizes.push(ids);
    }
    expect(sizes).toEqual([['a', 'b'], ['c'], ['d']]);
  });

  test('a row that was retried and died again is copied again, also while its first copy is under way', async () => {
    await die('a');
    const first = await take();
    await client.query(`select waybill.inbox_retry('billing', 'a', 'once more')`);
    const [row] = await claim(client, 'billing');
    await client.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [row?.seq, row?.claim_token]);
    await say('done', first.deaths);
    const second = await take();
    expect(second.ids).toEqual(['a']);
    await say('done', second.deaths);
    expect(await uncopied()).toEqual([]);
  });

  test('whoever notes another death of a row does not hold up those who copy', async () => {
    await die('a', 'b');
    const { deaths } = await take();
    await other.query('begin');
    await other.query(`select waybill.inbox_replay('billing', 'a', 'once more')`);
    await other.query(
      `update waybill.inbox set status = 'dead', dead_reason = 'never', processed_at = clock_timestamp() where message_id = 'a'`,
    );
    await client.query(`set lock_timeout = '1s'`);
    await say('done', deaths);
    await client.query('reset lock_timeout');
    await other.query('rollback');
    expect(await uncopied()).toEqual(['a']);
  });

  test('what is retried, discarded, redacted, removed, or has no body any more is not copied', async () => {
    await die('retried', 'discarded', 'redacted', 'removed', 'empty', 'dead');
    await client.query(`select waybill.inbox_retry('billing', 'retried', 'x')`);
    await client.query(`select waybill.inbox_discard('billing', 'discarded', 'x')`);
    await client.query(`select waybill.redact(id => 'redacted')`);
    await client.query(`delete from waybill.inbox where message_id = 'removed'`);
    await client.query(`update waybill.inbox set body = null where message_id = 'empty'`);
    expect((await take()).ids).toEqual(['dead']);
    expect(await uncopied()).toEqual(['dead']);
  });

  test('however many there are that are dead no more, those behind them are found', async () => {
    await client.query(
      `insert into waybill.inbox (consumer, message_id, body, body_hash, status, dead_reason, processed_at)
       select 'billing', n::text, '', sha256(''), 'dead', 'never', clock_timestamp() from generate_series(1, 5000) n`,
    );
    await client.query(`update waybill.inbox set status = 'discarded', dead_reason = null`);
    await die('dead');
    expect((await take(client, 10)).ids).toEqual(['dead']);
  });

  test('they go with their consumer to its new name, and away with it', async () => {
    await die('a');
    await client.query(`select waybill.rename_consumer('billing', 'invoices')`);
    const claimed = await client.query(`select from waybill.inbox_deaths_claim('invoices', 10, 1000, '1 minute')`);
    expect(claimed.rowCount).toBe(1);
    expect((await client.query(`select waybill.forget_consumer('invoices', force => true) as answer`)).rows).toEqual([
      { answer: 'forgotten' },
    ]);
    expect((await client.query('select from waybill.inbox_uncopied')).rowCount).toBe(0);
  });

  test('F105: those that wait are counted by consumer, up to a bound; nothing is said to a role that may not look', async () => {
    await register(client, { name: 'emails' });
    const waiting = async () => (await readConsumers(client, 'waybill')).map(({ uncopied: copies }) => copies);
    const none = { count: 0, refused: 0, accuracy: 'exact', oldestAgeMs: null };
    expect(await waiting()).toEqual([none, none]);
    await die('a', 'b', 'c');
    const { deaths } = await take();
    await say('keep', deaths.slice(1), ", interval '1 hour', true");
    await client.query(`update waybill.inbox_uncopied set died_at = died_at - interval '1 hour' where inbox_seq = $1`, [
      deaths[0]?.seq,
    ]);
    const [billing, emails] = await waiting();
    expect(billing).toMatchObject({ count: 3, refused: 2, accuracy: 'exact' });
    expect(Math.round((billing?.oldestAgeMs ?? 0) / 60_000)).toBe(60);
    expect(emails).toEqual(none);
    await die(...Array.from({ length: 1_000 }, (_, n) => `more ${n}`));
    expect((await waiting())[0]).toMatchObject({ count: 1_000, accuracy: 'at-least' });
    await client.query(`
      create role looker; grant usage on schema waybill to looker;
      grant select on waybill.consumer, waybill.inbox to looker; set role looker`);
    try {
      expect(await waiting()).toEqual([null, null]);
    } finally {
      await client.query('reset role; drop owned by looker; drop role looker');
    }
  });

  test('none of a consumer that is being renamed: WB005', async () => {
    await die('a');
    await client.query(`select waybill.rename_begin('billing', 'invoices')`);
    await expect(take()).rejects.toMatchObject({ code: 'WB005' });
  });

  test('every way to die is noted: on arrival, as conflict, by verdict, by age of leases, by hand', async () => {
    await register(client, { name: 'billing', max_abandoned: 1, max_attempts: 1 });
    await die('arrival');
    await receive(client, 'billing', [
      { message_id: 'never' },
      { message_id: 'attempts' },
      { message_id: 'suspect' },
      { message_id: 'by hand' },
    ]);
    await receive(client, 'billing', [{ message_id: 'never', body: '{"other": 1}' }]);
    const rows = new Map((await claim(client, 'billing')).map((row) => [row.message_id, row]));
    const fail = (id: string, more: string) =>
      client.query(`select waybill.inbox_fail($1, $2, 'no' ${more})`, [rows.get(id)?.seq, rows.get(id)?.claim_token]);
    await fail('never', ', never => true');
    await fail('attempts', '');
    await client.query(
      `update waybill.inbox set status = 'dead', dead_reason = 'never', processed_at = now(), lease_until = null, claim_token = null
       where message_id = 'by hand'`,
    );
    await client.query(
      `update waybill.inbox set abandoned = 1, lease_until = now() - interval '1 s' where status = 'running'`,
    );
    await claim(client, 'billing');
    const { ids } = await take();
    const isConflict = (id: string): boolean => id.startsWith('conflict:');
    expect(ids.filter((id) => !isConflict(id)).sort()).toEqual(['arrival', 'attempts', 'by hand', 'never', 'suspect']);
    expect(ids.filter(isConflict)).toHaveLength(1);
  });

  test('the program gets message and death as they are', async () => {
    const body = Buffer.from([0, 255, 10]);
    await receive(client, 'billing', [{ message_id: 'a', dead_reason: 'never', error: 'no', type: 't', body }]);
    const store = new InboxStore(
      { use: (_, work) => work(client) },
      { schema: 'waybill', consumer: 'billing', now: () => 0, onHandled: () => undefined, claimsBodies: true },
    );
    const deaths = await store.claimDeaths({ rows: 10, bytes: 1_000, leaseMs: 60_000 });
    expect(deaths).toMatchObject([{ deadReason: 'never', error: 'no', refused: 0, message: { type: 't', body } }]);
    await store.keepDeaths(deaths, null, false);
    expect(await store.claimDeaths({ rows: 10, bytes: 1_000, leaseMs: 60_000 })).toEqual(deaths);
    await store.deathsCopied(deaths);
    expect(await uncopied()).toEqual([]);
  });
});

test('F17: after the migration the deaths that were not copied before are to be copied, and no others', async () => {
  const old = await freshDatabase();
  try {
    const on = await old.connect();
    await migrateUp(on, { migrations: loadMigrations().slice(0, VERSION - 1) });
    await register(on, { name: 'billing' }, { name: 'emails' });
    const dead = (consumer: string, ids: string[]) =>
      receive(
        on,
        consumer,
        ids.map((message_id) => ({ message_id, dead_reason: 'never' })),
      );
    await dead('billing', ['copied 1', 'copied 2', 'not copied']);
    await dead('emails', ['mail']);
    await on.query(
      `select waybill.inbox_deaths_copied(consumer, processed_at, seq) from waybill.inbox where message_id = 'copied 2'`,
    );
    await migrateUp(on);
    const { rows } = await on.query<{ id: string }>(
      `select u.consumer || ': ' || i.message_id as id from waybill.inbox_uncopied u join waybill.inbox i on i.seq = u.inbox_seq order by 1`,
    );
    expect(rows.map(({ id }) => id)).toEqual(['billing: not copied', 'emails: mail']);
  } finally {
    await old.drop();
  }
});
