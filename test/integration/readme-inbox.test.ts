import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { receive, register } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';

const run = promisify(execFile);

/** The SQL of one section of the README, in its order. */
function sqlOf(heading: string): string {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const section = readme.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
  return [...section.matchAll(/```sql\n([\s\S]*?)```/g)].map((block) => block[1]).join('\n');
}

test('the examples of "Receiving messages" work in psql as they stand', async () => {
  const database = await migratedDatabase();
  const suffix = database.name.slice(-10);
  const roles = { waybill_app: `app_${suffix}`, waybill_relay: `relay_${suffix}` };
  try {
    const client = await database.connect();
    for (const role of Object.values(roles)) await client.query(`create role ${role}`);
    await client.query(
      'create table invoices (message_id text, total numeric); create table orders (id int, paid boolean)',
    );
    await client.query('insert into orders values (1)');
    await register(client, { name: 'billing' });
    await receive(client, 'billing', [{ message_id: 'message id', body: '{"order": 1, "total": 19.90}' }]);
    let sql = sqlOf('Receiving messages, in any language');
    for (const [name, own] of Object.entries(roles)) sql = sql.replaceAll(name, own);
    const running = run('psql', ['-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-d', database.url, '-f', '-']);
    running.child.stdin?.end(sql);
    const { stdout } = await running;
    expect(await database.query('select total::float8 as total, message_id as id from invoices')).toEqual([
      { total: 19.9, id: 'message id' },
    ]);
    expect(stdout).toContain('already applied\nalready applied\nalready applied\n');
    expect(stdout).toContain('paused|resumed\n');
    await register(client, { name: 'billing', handler: 'sql', function: 'public.billing_on_event' });
    const answers = await receive(client, 'billing', [
      { message_id: 'paid', body: '{"order": 1}' },
      { message_id: 'early', body: '{"order": 2}' },
    ]);
    expect(answers.map(({ verdict }) => verdict)).toEqual(['done', 'not-yet']);
    expect(await database.query(`select type, causation_id as cause from waybill.outbox`)).toEqual([
      { type: 'order.paid', cause: 'paid' },
    ]);
    await client.query(
      Object.values(roles)
        .map((role) => `drop owned by ${role}; drop role ${role};`)
        .join(''),
    );
  } finally {
    await database.drop();
  }
});
