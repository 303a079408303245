import { WaybillError } from '../core/errors.js';
import type { BrokerConnection } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/**
 * Takes the lock queue: an exclusive queue on the publishing connection, so that whoever holds it and whoever publishes
 * are one (O8), and the broker itself ends both together. It is consumed by its holder, because an unused queue can
 * expire; a null delivery then tells that it was deleted, and `onLost` is called.
 * Throws WAYBILL_LOCK_TAKEN when another connection holds it: only the channel closes, the connection stays.
 */
export async function takeLockQueue(connection: BrokerConnection, queue: string, onLost: () => void): Promise<void> {
  const channel = await connection.plainChannel();
  let held = false;
  // A refusal closes the channel, too. Why not at once: when the connection ends, its channels close first, and that is
  // not a lost lock (F86, F92).
  channel.on('close', () => queueMicrotask(() => held && onLost()));
  try {
    await channel.assertQueue(queue, { exclusive: true, autoDelete: false, durable: false });
    await channel.consume(
      queue,
      (message) => {
        if (message === null) onLost();
        // What comes are the probes of `probeBroker`; they have told what they had to.
        else channel.ack(message);
      },
      { exclusive: true },
    );
    held = true;
  } catch (error) {
    // 403 has two meanings: somebody consumes it, or this user may not declare or read it.
    if (replyCode(error) === 405 || (replyCode(error) === 403 && /exclusive use/.test(String(error)))) {
      throw new WaybillError('WAYBILL_LOCK_TAKEN', `another process holds ${queue}`, {
        hint: 'Standing by until it is gone. If nobody else should run, look for a copy of the database with this broker.url.',
        cause: error,
      });
    }
    throw toBrokerError(error, `taking lock queue ${queue}`);
  }
}

/**
 * Resolves when the broker stores what this connection publishes: a probe to our own lock queue is confirmed. Under an
 * alarm that is when the alarm ends. Rejects when the channel dies.
 */
export async function probeBroker(connection: BrokerConnection, queue: string): Promise<void> {
  let confirmed: () => void = () => undefined;
  let died: (error: Error) => void = () => undefined;
  const answer = new Promise<void>((resolve, reject) => {
    confirmed = resolve;
    died = reject;
  });
  const channel = await connection.openChannel({
    onAck: () => confirmed(),
    onNack: () => died(new Error('the probe was refused')),
    onReturn: () => undefined,
    onClosed: (error) => died(toBrokerError(error, 'probing the broker')),
  });
  channel.publish({
    messageId: 'waybill-probe',
    exchange: '',
    routingKey: queue,
    body: Buffer.alloc(0),
    type: 'waybill.probe',
    contentType: 'application/octet-stream',
    contentEncoding: null,
    headers: {},
    correlationId: null,
    replyTo: null,
    priority: null,
    timestamp: null,
  });
  await answer;
  await channel.close();
}
