import type { MessageSpans } from '../inbox/spans.js';
import type { Tracing } from '../telemetry/tracing.js';
import { unixMs } from '../runtime/clock.js';

/** The spans of one consumer, for messages that belong to a trace. */
export function consumerSpans(tracing: Tracing, consumer: string, queue: string): MessageSpans {
  return {
    begin(operation, { traceparent, ...message }, attempt, agoMs) {
      if (traceparent === null) return undefined;
      const span = tracing.consumed({
        ...message,
        operation,
        traceparent,
        consumer,
        queue,
        attempt,
        startMs: unixMs() - agoMs,
      });
      return span && { context: span.context, end: ({ result, error }) => span.end(unixMs(), result, error) };
    },
  };
}
