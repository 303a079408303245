import { WaybillError, type WaybillErrorCode } from '../core/errors.js';
import { untrustedServer } from '../core/untrusted.js';
import { foreignFunctions } from './own-triggers.js';

interface Meaning {
  code: WaybillErrorCode;
  hint?: string;
}

/** What a SQLSTATE means for the relay; the first prefix that fits wins. Source: the manual, appendix A. */
const MEANINGS: readonly (readonly [prefix: string, meaning: Meaning])[] = [
  [
    '28',
    {
      code: 'WAYBILL_DATABASE_REFUSED',
      hint: 'Check user and password of database.url and the pg_hba.conf line (for replication too).',
    },
  ],
  [
    '3D000',
    { code: 'WAYBILL_DATABASE_REFUSED', hint: 'The database of database.url does not exist: create it first.' },
  ],
  [
    '42501',
    {
      code: 'WAYBILL_DATABASE_REFUSED',
      hint: 'A grant is missing; apply sql/roles.sql, and give the role REPLICATION (or rds_replication).',
    },
  ],
  ['42P01', { code: 'WAYBILL_SCHEMA_MISSING', hint: 'Create the tables with: waybill migrate up' }],
  ['3F000', { code: 'WAYBILL_SCHEMA_MISSING', hint: 'Create the tables with: waybill migrate up' }],
  [
    '53300',
    {
      code: 'WAYBILL_DATABASE_UNSUITABLE',
      hint: 'All connections or walsenders are in use: raise max_connections or max_wal_senders.',
    },
  ],
  [
    '53400',
    {
      code: 'WAYBILL_DATABASE_UNSUITABLE',
      hint: 'All replication slots are in use: raise max_replication_slots, or drop a slot nobody needs.',
    },
  ],
  ['53', { code: 'WAYBILL_DATABASE_UNAVAILABLE' }],
  ['57P', { code: 'WAYBILL_DATABASE_UNAVAILABLE' }],
  ['08', { code: 'WAYBILL_DATABASE_UNAVAILABLE' }],
  ['55006', { code: 'WAYBILL_SLOT_BUSY' }],
];

const NETWORK_CODES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT',
]);

/** Turns an error of the client or the server into ours, once; `doing` says what failed. Ours pass unchanged. */
export function toDatabaseError(error: unknown, doing: string): WaybillError {
  if (error instanceof WaybillError) return error;
  const untrusted = untrustedServer(error, doing, 'database');
  if (untrusted) return untrusted;
  const state = sqlState(error);
  const text = error instanceof Error ? error.message : String(error);
  if (state === undefined) {
    return new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', `${doing}: ${text || 'the connection failed'}`, {
      hint: 'Is PostgreSQL running and reachable under database.url?',
      cause: error,
    });
  }
  const [foreign] = foreignFunctions(error);
  if (foreign !== undefined && NOT_FOUND.has(state)) {
    return new WaybillError('WAYBILL_DATABASE_FAILED', `${doing}: ${text} (SQLSTATE ${state}, in ${foreign})`, {
      hint: `Waybill's connections look in pg_catalog alone: in ${foreign} name with its schema what it uses, or give it a path with: alter function ${foreign} set search_path = ...`,
      cause: error,
    });
  }
  const meaning = MEANINGS.find(([prefix]) => state.startsWith(prefix))?.[1];
  const trigger = triggerOf(error);
  const hint = meaning
    ? meaning.hint
    : trigger === undefined
      ? undefined
      : `Change or drop this trigger of your own, so that it lets the relay do what it does with its rows.`;
  const where = trigger === undefined ? '' : `, in trigger ${trigger}`;
  return new WaybillError(meaning?.code ?? 'WAYBILL_DATABASE_FAILED', `${doing}: ${text} (SQLSTATE ${state}${where})`, {
    ...(hint === undefined ? {} : { hint }),
    cause: error,
  });
}

/** No such table, function, operator or type, column, schema. */
const NOT_FOUND = new Set(['42P01', '42883', '42704', '42703', '3F000']);

/** A server that answers and takes no writes; `why` says what it is instead. */
export function notWritable(why: string): WaybillError {
  return new WaybillError('WAYBILL_DATABASE_UNSUITABLE', why, {
    hint: 'Put the primary among the hosts of database.url.',
  });
}

/** The trigger of the user's own in which a statement failed, if the store has found it out. */
function triggerOf(error: unknown): string | undefined {
  const { trigger } = error as { trigger?: unknown };
  return typeof trigger === 'string' ? trigger : undefined;
}

/** The five-character SQLSTATE of a server's error, or undefined for anything else. */
export function sqlState(error: unknown): string | undefined {
  if (error instanceof WaybillError) return sqlState(error.cause);
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  const { code } = error;
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && !NETWORK_CODES.has(code) ? code : undefined;
}

/**
 * Which of the two a replication connection misses, for SQLSTATE 42704. Why by the server's function that says so: what it
 * says is in the language of lc_messages, with the names of slot and publication in it.
 */
export function missingObject(error: unknown): 'publication' | 'slot' | undefined {
  if (sqlState(error) !== '42704') return undefined;
  const { routine } = error as { routine?: unknown };
  if (routine === 'get_publication_oid') return 'publication';
  return routine === 'ReplicationSlotAcquire' ? 'slot' : undefined;
}
