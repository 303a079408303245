import type { WaybillErrorCode } from './errors.js';

/**
 * What follows an error of a running relay or receiver:
 * - `again`: the cause passes by itself; try again with a growing delay.
 * - `wait`: somebody else works; stand by and try again soon.
 * - `operator`: a person must change something; say so, and look again from time to time.
 */
export type Consequence = 'again' | 'wait' | 'operator';

const CONSEQUENCES: Partial<Record<WaybillErrorCode, Consequence>> = {
  WAYBILL_DATABASE_UNAVAILABLE: 'again',
  WAYBILL_DATABASE_FAILED: 'again',
  WAYBILL_BROKER_UNAVAILABLE: 'again',
  WAYBILL_CONNECTION_CLOSED: 'again',
  WAYBILL_BROKER_STALLED: 'again',
  WAYBILL_SLOT_LOST: 'again',
  WAYBILL_PUBLICATION_MISSING: 'again',
  WAYBILL_CONSUMER_CANCELLED: 'again',
  WAYBILL_TRANSACTION_REPEATED: 'again',
  WAYBILL_STATEMENT_TOO_SLOW: 'again',
  WAYBILL_STREAM_PROTOCOL: 'operator',
  WAYBILL_SLOT_BUSY: 'wait',
  WAYBILL_LOCK_TAKEN: 'wait',
  WAYBILL_LOCK_LOST: 'wait',
  WAYBILL_EPOCH_LOST: 'wait',
};

/** Asking a person is the default: an error that nobody foresaw is not made better by haste. */
export function consequenceOf(code: WaybillErrorCode): Consequence {
  return CONSEQUENCES[code] ?? 'operator';
}
