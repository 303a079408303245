import { WaybillError, type WaybillErrorCode } from '../core/errors.js';
import { untrustedServer } from '../core/untrusted.js';

/** The AMQP reply code that amqplib puts on its errors, or undefined for a socket's error. */
export function replyCode(error: unknown): number | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'number' ? error.code : undefined;
}

/**
 * Reply codes with which the broker closes a connection over what it was sent: frame, syntax, command invalid, channel,
 * unexpected frame, not implemented, internal (a message may crash the channel's process). Not 320, an operator's, nor 530.
 * Source: https://www.rabbitmq.com/amqp-0-9-1-reference#constants
 */
const OBJECTIONS: ReadonlySet<number | undefined> = new Set([501, 502, 503, 504, 505, 540, 541]);

/** Whether the broker, or the client, has refused what was to be published, and not the connection or the exchange. */
export function isRefusedMessage(error: unknown): boolean {
  if (!(error instanceof WaybillError)) return true;
  const code = replyCode(error.cause);
  return code === 406 || OBJECTIONS.has(code);
}

/** Whether an exchange or queue is missing. */
export function isMissing(error: unknown): boolean {
  return error instanceof WaybillError && replyCode(error.cause) === 404;
}

/** Turns an error of the client or the broker into ours, once; `doing` says what failed. Ours pass unchanged. */
export function toBrokerError(error: unknown, doing: string): WaybillError {
  if (error instanceof WaybillError) return error;
  const untrusted = untrustedServer(error, doing, 'broker');
  if (untrusted) return untrusted;
  const text = error instanceof Error ? error.message : String(error);
  const fail = (code: WaybillErrorCode, message: string, hint?: string): WaybillError =>
    new WaybillError(code, `${doing}: ${message}`, { ...(hint === undefined ? {} : { hint }), cause: error });
  if (/ACCESS_REFUSED|Handshake terminated by server: 403/.test(text)) {
    return fail(
      'WAYBILL_BROKER_REFUSED',
      text,
      'Check user and password of broker.url, and the permissions of the user on the virtual host.',
    );
  }
  // The broker answers connection.open with a close, and the client names only the frame that it did not expect.
  if (text.includes('Expected ConnectionOpenOk')) {
    return fail(
      'WAYBILL_BROKER_REFUSED',
      'the virtual host does not exist, or the user may not enter it',
      'The virtual host is the path of broker.url (`/` is written %2F). Create it with: rabbitmqctl add_vhost <name>',
    );
  }
  if (replyCode(error) === 406) return fail('WAYBILL_TOPOLOGY_MISMATCH', text);
  if (OBJECTIONS.has(replyCode(error))) return fail('WAYBILL_CONNECTION_CLOSED', text);
  return fail('WAYBILL_BROKER_UNAVAILABLE', text, 'Is RabbitMQ running and reachable under broker.url?');
}
