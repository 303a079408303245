import type { Work } from '../outbox/work.js';
import type { Tracing } from '../telemetry/tracing.js';

/** A span from the commit of the row to the confirm of its message, for a row that belongs to a trace. */
export function traceConfirmed(tracing: Tracing, { row, message, committedAtMs }: Work, nowMs: number): void {
  if (row.traceparent === null || !message) return;
  tracing.published({
    traceparent: row.traceparent,
    tracestate: row.tracestate,
    messageId: message.messageId,
    exchange: message.exchange,
    routingKey: message.routingKey,
    // A row from the table has no time of commit.
    startMs: Math.min(committedAtMs ?? nowMs, nowMs),
    endMs: nowMs,
  });
}
