import type { Config } from '../config/load.js';
import { isWaybillError } from '../core/errors.js';
import { AbandonedAttempts } from '../postgres/abandoned-attempts.js';
import { readBacklog, type Backlog } from '../postgres/backlog.js';
import { readConsumers, type ConsumerBacklog } from '../postgres/inbox-backlog.js';
import { readRelays, readSlot, type RelayEntry, type SlotEntry } from '../postgres/inspect.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { LABEL_VALUES, type RelayGaugeName } from '../telemetry/metrics.js';
import type { Metrics } from '../telemetry/metrics-registry.js';
import { withDatabase, type SqlClient } from './session.js';

/** Looking must neither wait long nor burden a database in trouble. */
const LIMITS = { lockTimeoutMs: 500, statementTimeoutMs: 2_000, workTimeoutMs: 5_000 };

/** What this process runs, and therefore shows. */
interface ShownParts {
  relay: boolean;
  /** Those whose inbox is shown, by name. */
  consumers: readonly string[];
  /** Told at each look which consumers an operator has paused; none where that could not be seen. */
  onPaused: (names: ReadonlySet<string>) => void;
}

interface OutboxReading {
  backlog: Backlog;
  record: RelayEntry | undefined;
  slot: SlotEntry | undefined;
}

interface Reading {
  consumers: ConsumerBacklog[];
  abandoned: ReadonlyMap<string, number>;
  outbox: OutboxReading | undefined;
}

/**
 * Reads the metrics that only the database knows, at an interval and on a connection of its own, never at a scrape: how
 * often somebody scrapes must not matter to it. While it cannot be read they are absent, because an old number looks
 * like a good one.
 */
export async function collectFromDatabase(
  metrics: Metrics,
  config: () => Config,
  log: Logger,
  clock: Clock,
  ending: AbortSignal,
  parts: ShownParts,
): Promise<void> {
  let complaint: string | undefined;
  const beganMs = clock.now();
  const abandoned = new AbandonedAttempts();
  while (!ending.aborted) {
    const { database, relay, admin } = config();
    try {
      const elapsedMs = clock.now() - beganMs;
      const count = (client: SqlClient) => abandoned.count(client, database.schema, elapsedMs);
      show(metrics, relay.name, parts, await read(database, relay.name, parts, count));
      complaint = undefined;
    } catch (error) {
      show(metrics, relay.name, parts, undefined);
      const code = isWaybillError(error) ? error.code : String(error);
      // Told once: while PostgreSQL is away, the relay says so at each attempt.
      if (code !== complaint) log.warn({ err: error }, 'the metrics by the database cannot be read; they are absent');
      complaint = code;
    }
    await pause(clock, admin.collectIntervalMs, ending);
  }
}

function read(
  database: Config['database'],
  relayName: string,
  parts: ShownParts,
  countAbandoned: (client: SqlClient) => Promise<Reading['abandoned']>,
): Promise<Reading> {
  return withDatabase(database, LIMITS, async (client) => {
    const withConsumers = parts.consumers.length > 0;
    const consumers = withConsumers ? await readConsumers(client, database.schema) : [];
    const abandoned: Reading['abandoned'] = withConsumers ? await countAbandoned(client) : new Map();
    if (!parts.relay) return { consumers, abandoned, outbox: undefined };
    const record = (await readRelays(client, database.schema)).find(({ name }) => name === relayName);
    const slot = record?.slot == null ? undefined : await readSlot(client, record.slot);
    return { consumers, abandoned, outbox: { backlog: await readBacklog(client, database.schema), record, slot } };
  });
}

function show(metrics: Metrics, relay: string, parts: ShownParts, reading: Reading | undefined): void {
  if (parts.relay) showOutbox(metrics, relay, reading?.outbox);
  showInbox(metrics, parts.consumers, reading);
  parts.onPaused(reading ? pausedByOperator(reading) : new Set());
}

function showOutbox(metrics: Metrics, relay: string, reading: OutboxReading | undefined): void {
  const set = (name: RelayGaugeName, value: number | null | undefined): void =>
    metrics.set(name, { relay }, value ?? undefined);
  const states = reading?.backlog.states;
  const ready = states?.find(({ state }) => state === 'ready');
  set('waybill_outbox_pending', states && (ready?.count ?? 0));
  set('waybill_outbox_pending_is_estimate', states && Number(ready !== undefined && ready.accuracy !== 'exact'));
  set('waybill_outbox_oldest_pending_seconds', states && (ready ? seconds(ready.oldestAgeMs) : 0));
  for (const state of LABEL_VALUES.state) {
    const count = states && (states.find((each) => each.state === state)?.count ?? 0);
    metrics.set('waybill_outbox_held', { relay, state }, count);
  }
  set('waybill_outbox_table_bytes', reading?.backlog.tableBytes);
  set('waybill_slot_lag_bytes', reading?.slot?.lagBytes);
  set('waybill_slot_kept_wal_bytes', reading?.slot?.keptWalBytes);
  set('waybill_slot_safe_wal_bytes', reading?.slot?.safeWalBytes);
  set('waybill_checkpoint_age_seconds', seconds(reading?.record?.checkpointAgeMs));
  if (reading) set('waybill_collected_timestamp_seconds', Math.round(Date.now() / 1000));
}

function pausedByOperator({ consumers }: Reading): Set<string> {
  return new Set(consumers.filter(({ pausedBy }) => pausedBy === 'operator').map(({ name }) => name));
}

function showInbox(metrics: Metrics, names: readonly string[], reading: Reading | undefined): void {
  for (const consumer of names) {
    const found = reading?.consumers.find(({ name }) => name === consumer);
    metrics.set('waybill_consumer_paused', { consumer }, found && Number(found.pausedAt !== null));
    if (reading) {
      metrics.set('waybill_consumer_collected_timestamp_seconds', { consumer }, Math.round(Date.now() / 1000));
      metrics.total('waybill_inbox_abandoned_total', { consumer }, reading.abandoned.get(consumer) ?? 0);
    }
    const states = found?.states ?? undefined;
    for (const status of LABEL_VALUES.status) {
      const count = states && (states.find(({ state }) => state === status)?.count ?? 0);
      metrics.set('waybill_inbox_rows', { consumer, status }, count);
    }
    metrics.set('waybill_inbox_copies_waiting', { consumer }, found?.uncopied?.count);
    metrics.set('waybill_inbox_copies_refused', { consumer }, found?.uncopied?.refused);
    const open = states?.filter(({ state }) => state !== 'dead').map(({ oldestAgeMs }) => oldestAgeMs ?? 0);
    metrics.set('waybill_inbox_oldest_pending_seconds', { consumer }, open && seconds(Math.max(0, ...open)));
  }
}

function seconds(ms: number | null | undefined): number | undefined {
  return ms == null ? undefined : Math.max(0, ms) / 1000;
}
