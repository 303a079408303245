/**
 * Every operating error Waybill raises. The code is stable and names the manual entry; the README's table is made from
 * these lines. Foreign errors (SQLSTATE, AMQP reply codes) become one of these at the adapter's edge, once.
 */
export const ERROR_CODES = {
  WAYBILL_CONFIG_INVALID: 'The configuration has problems; each is listed with its key.',
  WAYBILL_SCHEMA_MISSING: 'The Waybill tables are not in this database and schema.',
  WAYBILL_SCHEMA_TOO_OLD: 'The schema is older than this program needs.',
  WAYBILL_SCHEMA_TOO_NEW: 'The schema is newer than this program can work with.',
  WAYBILL_MIGRATION_FAILED: 'A migration did not apply; nothing of it stays.',
  WAYBILL_DATABASE_UNAVAILABLE: 'PostgreSQL cannot be reached or went away.',
  WAYBILL_DATABASE_FAILED: 'PostgreSQL answered a statement with an error that was not expected.',
  WAYBILL_DATABASE_REFUSED: 'PostgreSQL refused the credentials, the role or a grant.',
  WAYBILL_DATABASE_UNSUITABLE: 'A PostgreSQL setting makes the work impossible (wal_level, standby, slots used up).',
  WAYBILL_SLOT_TAKEN: 'The replication slot name belongs to another database or plugin.',
  WAYBILL_SLOT_BUSY: 'Another process streams from the replication slot.',
  WAYBILL_SLOT_LOST: 'The replication slot is gone, invalidated or ahead of the server.',
  WAYBILL_PUBLICATION_MISSING: 'The publication does not exist at the position that is decoded.',
  WAYBILL_PUBLICATION_UNFIT: 'The publication does not send every insert of the outbox whole.',
  WAYBILL_ROWS_ONLY_IN_LOG:
    'Rows that an application deletes itself are only in the log, and what was asked for would lose them.',
  WAYBILL_STREAM_PROTOCOL: 'The replication stream sent something this program does not understand.',
  WAYBILL_SERVER_UNTRUSTED:
    'The certificate of PostgreSQL or RabbitMQ is expired, for another name, or of an authority that is not trusted.',
  WAYBILL_BROKER_UNAVAILABLE: 'RabbitMQ cannot be reached or went away.',
  WAYBILL_BROKER_REFUSED: 'RabbitMQ refused the credentials, the virtual host or a permission.',
  WAYBILL_CONNECTION_CLOSED:
    'RabbitMQ closed the whole connection over something that was sent; what was in flight goes one by one, and a message that does it alone three times is parked.',
  WAYBILL_BROKER_STALLED: 'RabbitMQ confirmed nothing for too long.',
  WAYBILL_TOPOLOGY_MISMATCH: 'An exchange or queue is missing, may not be used, or exists with other properties.',
  WAYBILL_DELAY_PLUGIN_MISSING:
    'RabbitMQ does not have the plugin that `delay: x-delayed-message` of a consumer asks for; until it is enabled, the daemon wakes the retries itself.',
  WAYBILL_LOCK_TAKEN: 'Another relay of this installation holds the lock queue.',
  WAYBILL_LOCK_LOST: 'The lock queue was taken from this relay; it stopped publishing at once.',
  WAYBILL_EPOCH_LOST: 'Another relay has taken over in the database; this one stopped settling at once.',
  WAYBILL_IDENTITY_CHANGED: 'This is not the PostgreSQL cluster or RabbitMQ cluster that the relay worked with before.',
  WAYBILL_SECOND_RELAY: 'Another relay name is recorded for this schema; one schema has one relay.',
  WAYBILL_RELAY_UNKNOWN: 'No relay of that name is recorded in the schema.',
  WAYBILL_STILL_IN_USE: 'What is to be removed or renamed is still in use, or still holds messages.',
  WAYBILL_CONSUMER_RENAMED:
    'A new consumer has the queue of a registered one that is not configured any more; a rename would forget what was applied. Or a rename is not through: `waybill consumer rename` goes on with it.',
  WAYBILL_CONSUMER_UNKNOWN: 'No consumer of that name is registered in the schema.',
  WAYBILL_CONSUMER_CANCELLED:
    'RabbitMQ ended a consumer, because its queue was deleted or moved; it consumes again by itself.',
  WAYBILL_HANDLER_BROKEN: 'The handler of a consumer is missing or may not be called; the consumer pauses and probes.',
  WAYBILL_TRANSACTION_REPEATED:
    'PostgreSQL ended a transaction for the sake of another; it is repeated, and nothing is spent.',
  WAYBILL_STATEMENT_TOO_SLOW: 'A statement of the inbox took longer than the timeout of the handler.',
  WAYBILL_ROW_REFUSED: 'PostgreSQL refused what a message would be as a row; it is kept as malformed.',
  WAYBILL_DRAIN_INCOMPLETE: 'The deadline for stopping passed with messages unconfirmed; they will be published again.',
  WAYBILL_STOPPED: 'The operation ended because the service is stopping.',
} as const;

export type WaybillErrorCode = keyof typeof ERROR_CODES;

/** An operation failed. `hint` says what a person can do; `cause` keeps the foreign error. Never holds secrets or bodies. */
export class WaybillError extends Error {
  readonly code: WaybillErrorCode;
  readonly hint: string | undefined;

  constructor(code: WaybillErrorCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'WaybillError';
    this.code = code;
    this.hint = options.hint;
  }
}

export function isWaybillError(error: unknown, ...codes: WaybillErrorCode[]): error is WaybillError {
  return error instanceof WaybillError && (codes.length === 0 || codes.includes(error.code));
}
