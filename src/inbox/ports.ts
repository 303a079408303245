import type { Verdict } from '../core/verdict.js';

/** What the receiver pipeline needs from the rooms below; the adapters satisfy these by their shape. */

/** One row of the inbox as a handler gets it. */
export interface InboxMessage {
  seq: bigint;
  consumer: string;
  messageId: string;
  type: string | null;
  key: string | null;
  schemaVersion: number | null;
  /** As received, byte for byte. */
  body: Buffer;
  contentType: string | null;
  contentEncoding: string | null;
  headers: Readonly<Record<string, unknown>>;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  appId: string | null;
  occurredAt: Date | null;
  traceparent: string | null;
  tracestate: string | null;
  /** From 1. */
  attempt: number;
}

/** Has the effect of a message, outside the inbox transaction. */
export interface MessageHandler {
  /** Never rejects for a message's sake; `signal` aborts when the service can wait no longer. */
  handle(message: InboxMessage, signal: AbortSignal): Promise<Verdict>;
}
