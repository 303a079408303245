import { describe, expect, it } from 'vitest';
import { checkMemory } from '../../../src/app/doctor-memory.js';
import { checkCommits, checkRights } from '../../../src/app/doctor-rights.js';
import { loadConfig } from '../../../src/config/load.js';
import type { Rights } from '../../../src/postgres/inspect-rights.js';

const SOUND: Rights = { role: 'relay', isSuperuser: false, owner: null, ownTables: [] };

describe('least privilege', () => {
  it.each<[string, Partial<Rights>, string, RegExp, RegExp]>([
    ['the relay role', {}, 'ok', /no superuser, and owns nothing/, /^$/],
    ['a superuser', { isSuperuser: true, owner: 'o', ownTables: ['outbox'] }, 'warn', /is a superuser/, /--roles/],
    [
      'the owner',
      { owner: 'relay', ownTables: ['inbox', 'outbox'] },
      'warn',
      /\(inbox, outbox\): it may drop/,
      /waybill migrate$/,
    ],
    [
      'a member of the owner',
      { owner: 'own', ownTables: ['outbox'] },
      'warn',
      /as a member of own/,
      /revoke "own" from "relay";$/,
    ],
    ['the owner of the schema alone', { owner: 'relay' }, 'warn', /owns schema waybill: /, /--roles/],
    ['the owner of one table', { ownTables: ['outbox'] }, 'warn', /tables of schema waybill \(outbox\): /, /--roles/],
  ])('%s', (_, change, severity, finding, mend) => {
    const found = checkRights({ ...SOUND, ...change }, 'waybill');
    expect(found).toMatchObject({ id: 'least-privilege', severity });
    expect(found.finding).toMatch(finding);
    expect(found.mend ?? '').toMatch(mend);
  });
});

describe('F24: commits', () => {
  const of = (value: string) => ({ value, where: 'role app', reset: 'alter role app reset synchronous_commit;' });
  it.each<[string, boolean, string]>([
    ['off', false, 'warn'],
    ['off', true, 'warn'],
    ['local', true, 'warn'],
    ['local', false, 'ok'],
    ['remote_apply', true, 'ok'],
    ['remote_write', true, 'ok'],
  ])('%s, with standbys %s: %s', (value, hasStandbys, severity) => {
    expect(checkCommits([of(value)], hasStandbys)).toMatchObject([{ id: 'synchronous-commit', severity }]);
  });

  it('are told one by one', () => expect(checkCommits([of('off'), of('off')], false)).toHaveLength(2));
});

describe('F110: memory', () => {
  const MEBIBYTE = 2 ** 20;
  const check = (text: string, mebibytes: number) =>
    checkMemory(
      loadConfig({
        file: { name: 'f', text },
        environment: { WAYBILL_DATABASE_URL: 'postgres://localhost/shop', WAYBILL_BROKER_URL: 'amqp://localhost' },
        readFile: () => '',
      }),
      mebibytes * MEBIBYTE,
    );

  it('as it comes, a relay has room in 128 MiB, and a consumer beside it in 286 MiB', () => {
    expect(check('', 128)).toMatchObject({
      severity: 'ok',
      finding: 'bodies may take 64 MiB of 128 MiB of memory at once',
    });
    expect(check('', 127).severity).toBe('warn');
    // 64 MiB that a receiver holds, and the body that was one too many.
    expect(check('consumers: { a: {} }', 286).severity).toBe('ok');
    expect(check('consumers: { a: {} }', 285)).toMatchObject({
      severity: 'warn',
      finding: expect.stringContaining('most of it by consumers.a.prefetch x maxBodyBytes (79 MiB)') as string,
      mend: expect.stringContaining('give it 286 MiB') as string,
    });
  });

  it('prefetch times the largest body counts where it is less', () => {
    const small = (prefetch: number): string =>
      `relay: false\nconsumers: { a: { prefetch: ${prefetch}, maxBodyBytes: 1MiB } }`;
    expect(check(small(10), 20).severity).toBe('ok');
    expect(check(small(11), 20).severity).toBe('warn');
    expect(check(small(10_000), 130).severity).toBe('ok');
  });
});
