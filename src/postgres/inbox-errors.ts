import { WaybillError, type WaybillErrorCode } from '../core/errors.js';
import { sqlState, toDatabaseError } from './errors.js';

/** What a SQLSTATE means for the receiver, where that differs from the relay; the first prefix that fits wins. */
const MEANINGS: readonly (readonly [prefix: string, code: WaybillErrorCode, hint?: string])[] = [
  ['WB004', 'WAYBILL_CONSUMER_UNKNOWN', 'It is registered when `waybill run` starts with it; was it forgotten since?'],
  ['WB005', 'WAYBILL_CONSUMER_RENAMED'],
  [
    'WB006',
    'WAYBILL_HANDLER_BROKEN',
    'The function must exist, take one inbox_message, and be executable by the role of database.url.',
  ],
  ['40001', 'WAYBILL_TRANSACTION_REPEATED'],
  ['40P01', 'WAYBILL_TRANSACTION_REPEATED'],
  ['55P03', 'WAYBILL_TRANSACTION_REPEATED'],
  ['57014', 'WAYBILL_STATEMENT_TOO_SLOW'],
  // A failover leaves the old primary read-only for a while.
  ['25006', 'WAYBILL_DATABASE_UNAVAILABLE'],
  ['22', 'WAYBILL_ROW_REFUSED'],
  ['23514', 'WAYBILL_ROW_REFUSED'],
  ['54', 'WAYBILL_ROW_REFUSED'],
];

/** Turns an error of the client or the server into ours, once; what is not the receiver's own is as for everybody. */
export function toInboxError(error: unknown, doing: string): WaybillError {
  const state = sqlState(error);
  const found = state === undefined ? undefined : MEANINGS.find(([prefix]) => state.startsWith(prefix));
  if (error instanceof WaybillError || !found) return toDatabaseError(error, doing);
  const [, code, hint = ownHint(error)] = found;
  const text = error instanceof Error ? error.message : String(error);
  return new WaybillError(code, `${doing}: ${text} (SQLSTATE ${state ?? ''})`, {
    ...(hint === undefined ? {} : { hint }),
    cause: error,
  });
}

function ownHint(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'hint' in error && typeof error.hint === 'string'
    ? error.hint
    : undefined;
}
