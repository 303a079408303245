import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { loadMigrations, renderMigration, SCHEMA_VERSION } from '../../../src/postgres/migrations.js';
import { rolesSql } from '../../../src/postgres/roles.js';
import { splitStatements } from '../../../src/postgres/sql-text.js';

const migrations = loadMigrations();
const OWN_PATH = 'set local search_path = pg_catalog, pg_temp';

test('the program knows its newest migration', () => {
  expect(SCHEMA_VERSION).toBe(migrations.length);
});

describe.each(migrations)('$file', (migration) => {
  const statements = splitStatements(migration.sql);

  test('is one transaction that records itself with what its head says', () => {
    expect(statements[0]?.text).toBe('begin');
    expect(statements.at(-1)?.text).toBe('commit');
    expect(statements.at(-2)?.text).toBe(
      `insert into waybill.migration (version, name, oldest_binary) values (${migration.version}, '${migration.name}', ${migration.oldestBinary})`,
    );
    expect(migration.oldestBinary).toBeGreaterThanOrEqual(1);
    expect(migration.oldestBinary).toBeLessThanOrEqual(migration.version);
  });

  test('waits only a bounded time for a lock', () => {
    expect(statements[1]?.text).toMatch(/^set local lock_timeout = '\d+s'$/);
  });

  test('finds nothing on the search path of whoever runs it', () => {
    expect(statements[2]?.text).toBe(OWN_PATH);
  });

  test('uses the word of the schema for the schema only', () => {
    const places = [...migration.sql.matchAll(/.{0,30}\bwaybill\b.{0,20}/g)].map(([place]) => place);
    const known =
      /\bwaybill\.(?:[a-z_]+|%I)|schema waybill\b|pg_catalog, waybill, pg_temp|to_regnamespace\('waybill'\)/;
    expect(places.filter((place) => !known.test(place))).toEqual([]);
  });

  test('gives functions that run as their owner a fixed search path', () => {
    for (const { text } of statements.filter((statement) => /\bsecurity definer\b/.test(statement.text))) {
      expect(text).toContain('set search_path = pg_catalog, waybill, pg_temp');
    }
  });

  test('renders another schema line by line', () => {
    const rendered = renderMigration(migration, 'orders_1');
    expect(rendered).not.toMatch(/\bwaybill\b/);
    expect(rendered.split('\n')).toHaveLength(renderMigration(migration).split('\n').length);
  });

  test('adds to the file one statement before the commit, for the owner', () => {
    const rendered = splitStatements(renderMigration(migration));
    expect(rendered.slice(0, -2)).toEqual(statements.slice(0, -1));
    expect(rendered.at(-2)?.text).toMatch(/^do \$\$[\s\S]*owner to/);
    expect(rendered.at(-1)?.text).toBe('commit');
  });
});

describe('rolesSql', () => {
  test('leaves nothing that only psql understands, and takes the defaults of the file', () => {
    const sql = rolesSql();
    expect(sql).not.toMatch(/^\\/m);
    expect(sql).not.toMatch(/:["'{]/);
    expect(sql).toContain(`set local waybill_roles.owner = 'waybill_owner';`);
    expect(sql).toContain(`set local waybill_roles.app_delete = '';`);
    expect(sql).toContain('grant insert, select (id, seq) on "waybill".outbox_history to "waybill_relay";');
  });

  test('finds nothing on the search path of whoever runs it', () => {
    expect(splitStatements(rolesSql()).map(({ text }) => text)).toEqual(expect.arrayContaining([OWN_PATH]));
    expect(splitStatements(rolesSql()).findIndex(({ text }) => text === OWN_PATH)).toBe(2);
  });

  test('quotes the names it is given', () => {
    const sql = rolesSql({ schema: 'orders', app: `o'"x`, appDelete: 'gone' });
    expect(sql).toContain(`set local waybill_roles.app = 'o''"x';`);
    expect(sql).toContain('grant usage on schema "orders" to "o\'""x", "waybill_relay", "waybill_observer";');
    expect(sql).toContain(`set local waybill_roles.app_delete = 'gone';`);
    expect(() => rolesSql({ schema: 'Orders' })).toThrow('not a schema name');
  });

  test('grants the application exactly the columns that publish fills', () => {
    const columns = (text: string, pattern: RegExp) =>
      pattern
        .exec(text)?.[1]
        ?.split(/,\s*/)
        .map((name) => name.trim())
        .sort();
    const roles = readFileSync(new URL('../../../sql/roles.sql', import.meta.url), 'utf8');
    const granted = columns(roles, /grant insert \(([^)]*)\)/);
    expect(granted).toEqual(columns(migrations[0]!.sql, /insert into waybill\.outbox \(([^)]*)\)/));
    expect(granted).toHaveLength(20);
  });
});
