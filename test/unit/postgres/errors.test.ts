import { expect, test } from 'vitest';
import { WaybillError } from '../../../src/core/errors.js';
import { missingObject, sqlState, toDatabaseError } from '../../../src/postgres/errors.js';

function serverError(code: string): Error {
  return Object.assign(new Error(`the server says ${code}`), { code });
}

test.each([
  ['F38: wrong password', '28P01', 'WAYBILL_DATABASE_REFUSED'],
  ['F38: no pg_hba line', '28000', 'WAYBILL_DATABASE_REFUSED'],
  ['no such database', '3D000', 'WAYBILL_DATABASE_REFUSED'],
  ['F36, F37: no grant', '42501', 'WAYBILL_DATABASE_REFUSED'],
  ['no table', '42P01', 'WAYBILL_SCHEMA_MISSING'],
  ['no schema', '3F000', 'WAYBILL_SCHEMA_MISSING'],
  ['F63: no connection left', '53300', 'WAYBILL_DATABASE_UNSUITABLE'],
  ['F32: no slot left', '53400', 'WAYBILL_DATABASE_UNSUITABLE'],
  ['F41: disk full', '53100', 'WAYBILL_DATABASE_UNAVAILABLE'],
  ['fact 58: shutting down', '57P01', 'WAYBILL_DATABASE_UNAVAILABLE'],
  ['fact 58: not accepting', '57P03', 'WAYBILL_DATABASE_UNAVAILABLE'],
  ['F20: connection lost', '08006', 'WAYBILL_DATABASE_UNAVAILABLE'],
  ['F29: slot in use', '55006', 'WAYBILL_SLOT_BUSY'],
  ['a statement cancelled by its timeout', '57014', 'WAYBILL_DATABASE_FAILED'],
  ['anything else', 'XX000', 'WAYBILL_DATABASE_FAILED'],
])('%s (%s) becomes %s', (_what, state, code) => {
  const cause = serverError(state);
  const error = toDatabaseError(cause, 'settling rows');
  expect(error).toMatchObject({ code, cause });
  expect(error.message).toContain('settling rows');
  expect(error.message).toContain(state);
  expect(sqlState(error)).toBe(state);
});

test.each(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH'])(
  'F64: a socket error (%s) is no SQLSTATE: the database is unavailable',
  (code) => {
    expect(sqlState(serverError(code))).toBeUndefined();
    expect(toDatabaseError(serverError(code), 'x').code).toBe('WAYBILL_DATABASE_UNAVAILABLE');
  },
);

test('F20: an error without a code, or no error at all, is the connection', () => {
  for (const cause of [new Error('Connection terminated unexpectedly'), new Error(''), 'gone', undefined]) {
    expect(toDatabaseError(cause, 'x').code).toBe('WAYBILL_DATABASE_UNAVAILABLE');
  }
});

test('an error of ours passes unchanged', () => {
  const error = new WaybillError('WAYBILL_EPOCH_LOST', 'x');
  expect(toDatabaseError(error, 'y')).toBe(error);
});

test('what fails inside a function of somebody is told with its name, and with nothing of the statement', () => {
  const cause = Object.assign(new Error('relation "audit" does not exist'), {
    code: '42P01',
    where: `SQL statement "insert into audit values ('customer 7')"\nPL/pgSQL function app.note_row() line 3 at SQL statement\nSQL statement "delete"`,
  });
  const error = toDatabaseError(cause, 'settling rows');
  expect(error.code).toBe('WAYBILL_DATABASE_FAILED');
  expect(error.message).toBe('settling rows: relation "audit" does not exist (SQLSTATE 42P01, in app.note_row())');
  expect(error.hint).toContain('alter function app.note_row() set search_path');
  expect(`${error.message}${error.hint}`).not.toContain('customer 7');
});

test.each([
  ['a missing grant', '42501', 'PL/pgSQL function app.note_row() line 3 at SQL statement', 'WAYBILL_DATABASE_REFUSED'],
  ['in a function of ours', '42P01', 'PL/pgSQL function store_arrivals(json) line 3 at FOR', 'WAYBILL_SCHEMA_MISSING'],
])('%s means what it means elsewhere', (_, code, where, expected) => {
  expect(toDatabaseError(Object.assign(new Error('no'), { code, where }), 'x').code).toBe(expected);
});

test.each([
  ['en', 'get_publication_oid', 'publication "waybill_outbox" does not exist', 'publication'],
  ['de', 'get_publication_oid', 'Publikation »waybill_outbox« existiert nicht', 'publication'],
  ['de', 'ReplicationSlotAcquire', 'Replikations-Slot »waybill_a_publication« existiert nicht', 'slot'],
  ['en', 'ReplicationSlotAcquire', 'replication slot "waybill_a_publication" does not exist', 'slot'],
  ['en', 'LookupTypeName', 'type "publication" does not exist', undefined],
])(
  'F26, F33: what is missing is told from the function of the server, not from its words (%s, %s)',
  (_language, routine, message, what) => {
    expect(missingObject(Object.assign(new Error(message), { code: '42704', routine }))).toBe(what);
    expect(missingObject(Object.assign(new Error(message), { code: '42P01', routine }))).toBeUndefined();
  },
);
