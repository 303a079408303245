import type { PartHealth } from '../admin/health.js';
import type { Config } from '../config/load.js';
import type { RelayCounters } from '../outbox/ports.js';
import type { RelayPhase } from './relay-acquire.js';
import type { RelayLook } from './relay-service.js';
import { ALL_IN_REACH, type SessionLive } from './session-view.js';
import type { Throughput } from './throughput.js';

/** What only the running process knows; the shape of /status/live, and of `live` in `waybill status --json`. */
export interface LiveStatus extends SessionLive {
  at: string;
  version: string;
  pid: number;
  uptimeSeconds: number;
  relay: string;
  schema: string;
  ready: boolean;
  /** Why it is not ready. */
  reason: string | null;
  phase: RelayPhase;
  phaseForSeconds: number;
  sessions: number;
  /** Confirmed messages a second. */
  throughput: Throughput;
  maxInFlight: number;
  maxInFlightBytes: number;
  eventLoopLagSeconds: number;
  /** Since the start of the process. */
  counters: RelayCounters;
}

const NO_SESSION: SessionLive = {
  connections: { database: false, replication: false, broker: false },
  brokerBlocked: false,
  inFlight: 0,
  inFlightBytes: 0,
  narrow: false,
  unsettled: 0,
  unusableExchanges: [],
  outOfReach: ALL_IN_REACH,
};

/** The relay at this moment. */
export function liveStatus(
  config: Config,
  look: RelayLook,
  health: PartHealth,
  measured: { throughput: Throughput; eventLoopLagSeconds: number; nowMs: number; version: string },
): LiveStatus {
  return {
    at: new Date().toISOString(),
    version: measured.version,
    pid: process.pid,
    uptimeSeconds: Math.round(process.uptime()),
    relay: config.relay.name,
    schema: config.database.schema,
    ready: health.ready,
    reason: health.reason,
    phase: look.phase,
    phaseForSeconds: Math.round((measured.nowMs - look.phaseSinceMs) / 1000),
    sessions: look.sessions,
    throughput: measured.throughput,
    ...(look.session?.live() ?? NO_SESSION),
    maxInFlight: config.relay.maxInFlight,
    maxInFlightBytes: config.relay.maxInFlightBytes,
    eventLoopLagSeconds: measured.eventLoopLagSeconds,
    counters: { ...look.counters },
  };
}
