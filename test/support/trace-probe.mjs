// Loaded with `node --import` before the program: an OpenTelemetry SDK that writes each span as a line of JSON to the file
// of WAYBILL_TEST_SPANS.
import { appendFileSync } from 'node:fs';
import { trace } from '@opentelemetry/api';
import { BasicTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';

const exporter = {
  export(spans, done) {
    for (const span of spans) {
      const { traceId, spanId } = span.spanContext();
      const line = {
        name: span.name,
        kind: span.kind,
        traceId,
        spanId,
        spanId,
        parentSpanId: span.parentSpanContext?.spanId,
        startMs: span.startTime[0] * 1e3 + span.startTime[1] / 1e6,
        endMs: span.endTime[0] * 1e3 + span.endTime[1] / 1e6,
        attributes: span.attributes,
        links: span.links.map(({ context }) => context.spanId),
        status: span.status,
        tracestate: span.spanContext().traceState?.serialize(),
        scope: span.instrumentationScope.name,
      };
      appendFileSync(process.env.WAYBILL_TEST_SPANS, `${JSON.stringify(line)}\n`);
    }
    done({ code: 0 });
  },
  shutdown: () => Promise.resolve(),
};

trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));
