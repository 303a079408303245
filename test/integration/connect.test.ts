import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { clientConfig } from '../../src/postgres/connect.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';

let database: FreshDatabase;

beforeAll(async () => {
  database = await freshDatabase();
});
afterAll(() => database.drop());

test('O7: options in the URL are heard, and do not replace the settings that copies from the log depend on', async () => {
  const url = new URL(database.url);
  url.searchParams.set('options', '-c bytea_output=escape -c datestyle=German -c work_mem=5MB -c search_path=public');
  for (const password of [undefined, () => Promise.resolve(new URL(database.url).password)]) {
    const endpoint = { url: url.href, ...(password ? { password } : {}) };
    const client = new pg.Client(await clientConfig(endpoint, 'a walsender', true));
    await client.connect();
    try {
      const settings = await client.query(
        `select current_setting('bytea_output') as bytea, current_setting('datestyle') as dates,
           current_setting('work_mem') as memory, current_setting('search_path') as path`,
      );
      expect(settings.rows).toEqual([{ bytea: 'hex', dates: 'ISO, MDY', memory: '5MB', path: 'pg_catalog,pg_temp' }]);
    } finally {
      await client.end();
    }
  }
});
