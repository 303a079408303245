import type { Outcome } from './ports.js';

/** What of a message its spans say. */
export interface Traceable {
  messageId: string;
  /** W3C trace context; null or nonsense: the message belongs to no trace, and gets no span. */
  traceparent: string | null;
  tracestate: string | null;
  exchange: string | null;
  routingKey: string | null;
}

/** How a delivery or an attempt ended, in the words of the log. */
export interface SpanEnd {
  result: string;
  error: { type: string; text: string } | undefined;
}

/** A span that has begun. */
export interface MessageSpan {
  /** The context in which the handler works, to be handed on. */
  readonly context: { traceparent: string; tracestate: string | null };
  /** Once. */
  end(end: SpanEnd): void;
}

/** Spans of one consumer; none of these calls ever throws. */
export interface MessageSpans {
  /**
   * `receive`: a delivery is stored. `process`: a handler has the message, for the `attempt`th time. Began `agoMs`
   * milliseconds ago. Undefined for a message that belongs to no trace.
   */
  begin(operation: 'receive' | 'process', message: Traceable, attempt: number, agoMs: number): MessageSpan | undefined;
}

/** What a span says of this outcome. Waiting for data that is not there yet is no error. */
export function spanEnd({ status, verdict, deadReason, error }: Omit<Outcome, 'seq'>): SpanEnd {
  const failed = (result: string, type: string): SpanEnd => ({ result, error: { type, text: error ?? '' } });
  if (status === 'dead') return failed('dead', deadReason ?? verdict ?? 'dead');
  switch (verdict) {
    case null:
      return { result: 'received', error: undefined };
    case 'done':
      return { result: 'applied', error: undefined };
    case 'not-yet':
      return { result: 'deferred', error: undefined };
    case 'lost':
      return failed('lost', 'lost');
    case 'release':
      return failed('released', 'released');
    case 'retry':
    case 'broken':
    case 'never':
      return failed('retry', verdict);
  }
}
