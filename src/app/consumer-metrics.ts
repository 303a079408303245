import type { PartHealth } from '../admin/health.js';
import type { ConsumerCounters } from '../inbox/ports.js';
import type { CounterName } from '../telemetry/metrics.js';
import type { Metrics } from '../telemetry/metrics-registry.js';
import type { ConsumerLook } from './consumer-service.js';

/** The metric of each counter that has one; the others are for the log and for tests. */
const COUNTERS: Partial<Record<keyof ConsumerCounters, Extract<CounterName, `waybill_inbox_${string}`>>> = {
  received: 'waybill_inbox_received_total',
  applied: 'waybill_inbox_applied_total',
  duplicates: 'waybill_inbox_duplicate_total',
  conflicts: 'waybill_inbox_conflict_total',
  retried: 'waybill_inbox_retried_total',
  deferred: 'waybill_inbox_deferred_total',
  dead: 'waybill_inbox_dead_total',
  timersRefused: 'waybill_inbox_timers_refused_total',
};

/** Brings the metrics of consumers up to date; from memory. */
export function showConsumers(metrics: Metrics, looks: readonly ConsumerLook[]): void {
  for (const { name: consumer, counters, breaker, isConsuming, isConnected, lag } of looks) {
    for (const [counter, name] of Object.entries(COUNTERS)) {
      metrics.total(name, { consumer }, counters[counter as keyof ConsumerCounters]);
    }
    metrics.set('waybill_consumer_breaker_open', { consumer }, Number(breaker !== 'closed'));
    metrics.set('waybill_consumer_lag_messages', { consumer }, lag);
    metrics.set('waybill_consumer_consuming', { consumer }, Number(isConsuming));
    for (const [connection, isUp] of Object.entries(isConnected)) {
      metrics.set('waybill_consumer_connection_up', { consumer, connection }, Number(isUp));
    }
  }
}

/**
 * Consumers in `/readyz`. They are detail, because one that cannot work is no reason to take the others away (F120); where
 * they are all that a process does, it is ready when any of them is.
 */
export function consumerHealth(
  looks: readonly ConsumerLook[],
  decides: boolean,
  paused: ReadonlySet<string>,
): PartHealth {
  const working = looks.some(({ isConsuming }) => isConsuming);
  const ready = !decides || working;
  return {
    name: 'consumers',
    ready,
    reason: ready ? null : 'no consumer takes messages',
    detail: Object.fromEntries(
      looks.map((look) => [
        look.name,
        {
          state: stateOf(look),
          breaker: look.breaker,
          reason: reasonOf(look),
          // No reason against readiness: it does what it was told. Why it was paused is for those with a token.
          note: paused.has(look.name) ? 'paused by an operator: messages are kept, and none is handed out' : null,
        },
      ]),
    ),
  };
}

function stateOf({ isConsuming, breaker }: ConsumerLook): string {
  if (breaker !== 'closed') return 'paused';
  return isConsuming ? 'consuming' : 'not consuming';
}

/** Why a consumer does not work as it should; null when it does. What keeps it from its queue comes first. */
function reasonOf({ isConsuming, breaker, troubles }: ConsumerLook): string | null {
  if (breaker !== 'closed') return 'its handler fails for every message; one at a time is tried';
  const [worst] = [...troubles].sort((a, b) => Number(b.part === 'the queue') - Number(a.part === 'the queue'));
  if (worst) return `${worst.part}: ${worst.meaning}`;
  return isConsuming ? null : 'it has not begun yet';
}
