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

/** A delivery that is stored (`receive`), or an attempt of a handler (`process`), of a message that belongs to a trace. */
export interface ConsumedSpan {
  operation: 'receive' | 'process';
  traceparent: string;
  tracestate: string | null;
  messageId: string;
  consumer: string;
  queue: string;
  /** Null where it is not known. */
  exchange: string | null;
  routingKey: string | null;
  /** From 1. */
  attempt: number;
  startMs: number;
}

/** A span that has begun. */
export interface OpenSpan {
  /** The trace context in which the work goes on. */
  readonly context: { traceparent: string; tracestate: string | null };
  /** An error makes it a failed one; its text is cut. */
  end(endMs: number, result: string, error: { type: string; text: string } | undefined): void;
}

/** Spans of what Waybill does, handed to the OpenTelemetry SDK that this process was started with. */
export interface Tracing {
  /** Notes a span; never throws. What is no trace context is left out. */
  published(span: PublishedSpan): void;
  /** Begins a span; never throws. Undefined for what is no trace context. */
  consumed(span: ConsumedSpan): OpenSpan | undefined;
  /** Asks the SDK to send what it still holds. */
  flush(): Promise<void>;
}

const ERROR_CHARACTERS = 300;

/**
 * Tracing, if the package @opentelemetry/api is there and an SDK was registered before the program began, such as with
 * `node --import`. Without one nothing is made and nothing costs. Names and attributes are those of the conventions for
 * messaging and RabbitMQ: https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
 */
export async function loadTracing(version: string): Promise<Tracing | undefined> {
  const api = await import('@opentelemetry/api').catch(() => undefined);
  if (!api) return undefined;
  const { trace, ROOT_CONTEXT, SpanKind, SpanStatusCode, createTraceState, isSpanContextValid } = api;
  const provider = trace.getTracerProvider() as ReturnType<typeof trace.getTracerProvider> & {
    getDelegate?: () => object;
    forceFlush?: () => Promise<void>;
  };
  const delegate = (provider.getDelegate?.() ?? provider) as typeof provider;
  if (delegate.constructor.name === 'NoopTracerProvider') return undefined;
  const tracer = trace.getTracer('waybill', version);

  const parentOf = (traceparent: string, tracestate: string | null) => {
    const [, traceId = '', spanId = '', flags = ''] =
      /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-|$)/.exec(traceparent) ?? [];
    const parent = {
      traceId,
      spanId,
      traceFlags: Number.parseInt(flags, 16) & 1,
      isRemote: true,
      ...(tracestate === null ? {} : { traceState: createTraceState(tracestate) }),
    };
    return isSpanContextValid(parent) ? parent : undefined;
  };

  return {
    published({ traceparent, tracestate, messageId, exchange, routingKey, startMs, endMs }) {
      try {
        const parent = parentOf(traceparent, tracestate);
        if (!parent) return;
        const attributes = { ...common('send', [exchange, routingKey], routingKey), 'messaging.message.id': messageId };
        // Why the exchange alone in the name: a routing key may hold the key of an entity.
        const name = `send ${exchange === '' ? '(default)' : exchange}`;
        const options = { kind: SpanKind.PRODUCER, startTime: new Date(startMs), attributes };
        tracer.startSpan(name, options, trace.setSpanContext(ROOT_CONTEXT, parent)).end(new Date(endMs));
      } catch {
        // An SDK that fails must not cost a message.
      }
    },

    consumed({ operation, traceparent, tracestate, messageId, consumer, queue, attempt, startMs, ...route }) {
      try {
        const parent = parentOf(traceparent, tracestate);
        if (!parent) return undefined;
        const routingKey = route.routingKey ?? '';
        const span = tracer.startSpan(
          `${operation} ${queue}`,
          {
            // A delivery is stored by us as a client of the broker; an attempt is what the message is for.
            kind: operation === 'receive' ? SpanKind.CLIENT : SpanKind.CONSUMER,
            startTime: new Date(startMs),
            links: [{ context: parent }],
            attributes: {
              ...common(operation, [route.exchange ?? '', routingKey, queue], routingKey),
              'messaging.message.id': messageId,
              'waybill.consumer': consumer,
              ...(operation === 'process' ? { 'waybill.attempt': attempt } : {}),
            },
          },
          trace.setSpanContext(ROOT_CONTEXT, parent),
        );
        const { traceId, spanId, traceFlags, traceState } = span.spanContext();
        const flags = (traceFlags & 0xff).toString(16).padStart(2, '0');
        return {
          context: {
            traceparent: `00-${traceId}-${spanId}-${flags}`,
            tracestate: traceState?.serialize() ?? tracestate,
          },
          end(endMs, result, error) {
            try {
              span.setAttribute('waybill.result', result);
              if (error) {
                span.setAttribute('error.type', error.type);
                span.setStatus({ code: SpanStatusCode.ERROR, message: error.text.slice(0, ERROR_CHARACTERS) });
              }
              span.end(new Date(endMs));
            } catch {
              // As above.
            }
          },
        };
      } catch {
        return undefined;
      }
    },

    flush: async () => {
      await delegate.forceFlush?.().catch(() => undefined);
    },
  };
}

/** `route`: exchange, routing key and, of a consumer, the queue; empty ones and a queue named as its key are left out. */
function common(operation: string, route: readonly string[], routingKey: string): Record<string, string> {
  const parts = route.filter((part, index) => part !== '' && route.indexOf(part) === index);
  return {
    'messaging.system': 'rabbitmq',
    'messaging.operation.name': operation,
    'messaging.operation.type': operation,
    'messaging.destination.name': parts.length === 0 ? 'amq.default' : parts.join(':'),
    ...(routingKey === '' ? {} : { 'messaging.rabbitmq.destination.routing_key': routingKey }),
  };
}
