import type { Config } from '../config/load.js';
import type { RelayCounters } from '../outbox/ports.js';
import { LABEL_VALUES, type CounterName } from '../telemetry/metrics.js';
import type { Metrics } from '../telemetry/metrics-registry.js';
import { ACTIVE } from './relay-health.js';
import type { RelayLook } from './relay-service.js';

const CONNECTIONS = ['database', 'replication', 'broker'] as const;

/** The metric of each counter; a new counter without one does not compile. */
const COUNTERS: Readonly<Record<keyof RelayCounters, Extract<CounterName, `waybill_outbox_${string}`>>> = {
  published: 'waybill_outbox_published_total',
  confirmed: 'waybill_outbox_confirmed_total',
  returned: 'waybill_outbox_returned_total',
  nacked: 'waybill_outbox_nacked_total',
  resent: 'waybill_outbox_resent_total',
  settled: 'waybill_outbox_settled_total',
  scheduled: 'waybill_outbox_scheduled_total',
  parked: 'waybill_outbox_parked_total',
  blocked: 'waybill_outbox_blocked_total',
  accepted: 'waybill_outbox_accepted_total',
  expired: 'waybill_outbox_expired_total',
  gone: 'waybill_outbox_gone_total',
  rebuilt: 'waybill_outbox_rebuilt_total',
  swept: 'waybill_outbox_swept_total',
  duplicatesSkipped: 'waybill_outbox_skipped_total',
};

/** Brings the relay's metrics up to date; from memory. */
export function showRelay(metrics: Metrics, config: Config['relay'], look: RelayLook, ready: boolean): void {
  const relay = config.name;
  for (const [counter, name] of Object.entries(COUNTERS)) {
    metrics.total(name, { relay }, look.counters[counter as keyof RelayCounters]);
  }
  metrics.total('waybill_relay_sessions_total', { relay }, look.sessions);
  const live = look.session?.live();
  metrics.set('waybill_outbox_in_flight', { relay }, live?.inFlight ?? 0);
  metrics.set('waybill_outbox_in_flight_bytes', { relay }, live?.inFlightBytes ?? 0);
  metrics.set('waybill_outbox_in_flight_limit', { relay }, config.maxInFlight);
  metrics.set('waybill_outbox_unsettled', { relay }, live?.unsettled ?? 0);
  metrics.set('waybill_outbox_locked', { relay }, live?.outOfReach.locked ?? 0);
  metrics.set('waybill_outbox_refused', { relay }, live?.outOfReach.refused ?? 0);
  metrics.set('waybill_relay_active', { relay }, Number(ACTIVE.has(look.phase)));
  metrics.set('waybill_relay_ready', { relay }, Number(ready));
  for (const phase of LABEL_VALUES.phase) {
    metrics.set('waybill_relay_phase', { relay, phase }, Number(phase === look.phase));
  }
  for (const connection of CONNECTIONS) {
    metrics.set('waybill_connection_up', { relay, connection }, Number(live?.connections[connection] ?? false));
  }
  metrics.set('waybill_broker_blocked', { relay }, Number(live?.brokerBlocked ?? false));
}
