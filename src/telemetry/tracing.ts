/** A message that was published for a trace which the application began. Times in milliseconds since 1970. */
export interface PublishedSpan {
  /** W3C trace context, as the row carries it. */
  traceparent: string;
  tracestate: string | null;
  messageId: string;
  exchange: string;
  routingKey: string;
  /** From the commit of the row, or as long as it is known. */
  startMs: number;
  endMs: number;
}

/** Spans of what Waybill does, handed to the OpenTelemetry SDK that this process was started with. */
export interface Tracing {
  /** Notes a span; never throws. What is no trace context is left out. */
  published(span: PublishedSpan): void;
  /** Asks the SDK to send what it still holds. */
  flush(): Promise<void>;
}

/**
 * Tracing, if the package @opentelemetry/api is there and an SDK was registered before the program began, such as with
 * `node --import`. Without one nothing is made and nothing costs.
 */
export async function loadTracing(version: string): Promise<Tracing | undefined> {
  const api = await import('@opentelemetry/api').catch(() => undefined);
  if (!api) return undefined;
  const { trace, ROOT_CONTEXT, SpanKind, createTraceState, isSpanContextValid } = api;
  const provider = trace.getTracerProvider() as ReturnType<typeof trace.getTracerProvider> & {
    getDelegate?: () => object;
    forceFlush?: () => Promise<void>;
  };
  const delegate = (provider.getDelegate?.() ?? provider) as typeof provider;
  if (delegate.constructor.name === 'NoopTracerProvider') return undefined;
  const tracer = trace.getTracer('waybill', version);
  return {
    published({ traceparent, tracestate, messageId, exchange, routingKey, startMs, endMs }) {
      const [, traceId = '', spanId = '', flags = ''] =
        /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-|$)/.exec(traceparent) ?? [];
      const parent = {
        traceId,
        spanId,
        traceFlags: Number.parseInt(flags, 16) & 1,
        isRemote: true,
        ...(tracestate === null ? {} : { traceState: createTraceState(tracestate) }),
      };
      if (!isSpanContextValid(parent)) return;
      try {
        tracer
          .startSpan(
            `send ${exchange === '' ? '(default)' : exchange}`,
            {
              kind: SpanKind.PRODUCER,
              startTime: new Date(startMs),
              attributes: {
                'messaging.system': 'rabbitmq',
                'messaging.operation.type': 'send',
                'messaging.destination.name': exchange,
                'messaging.rabbitmq.destination.routing_key': routingKey,
                'messaging.message.id': messageId,
              },
            },
            trace.setSpanContext(ROOT_CONTEXT, parent),
          )
          .end(new Date(endMs));
      } catch {
        // An SDK that fails must not cost a message.
      }
    },
    flush: async () => {
      await delegate.forceFlush?.().catch(() => undefined);
    },
  };
}
