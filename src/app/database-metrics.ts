import type { Config } from '../config/load.js';
import { isWaybillError } from '../core/errors.js';
import { readBacklog, type Backlog } from '../postgres/backlog.js';
import { readConsumers, type ConsumerBacklog } from '../postgres/inbox-backlog.js';
import { readRelays, readSlot, type RelayEntry, type SlotEntry } from '../postgres/inspect.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { LABEL_VALUES, type RelayGaugeName } from '../telemetry/metrics.js';
import type { Metrics } from '../telemetry/metrics-registry.js';
import { withDatabase } from './session.js';

/** Looking must neither wait long nor burden a database in trouble. */
const LIMITS = { lockTimeoutMs: 500, statementTimeoutMs: 2_000, workTimeoutMs: 5_000 };

/** What this process runs, and therefore shows. */
interface ShownParts {
  relay: boolean;
  /** Those whose inbox is shown, by name. */
  consumers: readonly string[];
}

interface OutboxReading {
  backlog: Backlog;
  record: RelayEntry | undefined;
  slot: SlotEntry | undefined;
}

interface Reading {
  consumers: ConsumerBacklog[];
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
  while (!ending.aborted) {
    const { database, relay, admin } = config();
    try {
      show(metrics, relay.name, parts, await read(database, relay.name, parts));
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

function read(database: Config['database'], relayName: string, parts: ShownParts): Promise<Reading> {
  return withDatabase(database, LIMITS, async (client) => {
    const consumers = parts.consumers.length > 0 ? await readConsumers(client, database.schema) : [];
    if (!parts.relay) return { consumers, outbox: undefined };
    const record = (await readRelays(client, database.schema)).find(({ name }) => name === relayName);
    const slot = record?.slot == null ? undefined : await readSlot(client, record.slot);
    return { consumers, outbox: { backlog: await readBacklog(client, database.schema), record, slot } };
  });
}

function show(metrics: Metrics, relay: string, parts: ShownParts, reading: Reading | undefined): void {
  if (parts.relay) showOutbox(metrics, relay, reading?.outbox);
  showInbox(metrics, parts.consumers, reading?.consumers);
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

function showInbox(metrics: Metrics, names: readonly string[], read: ConsumerBacklog[] | undefined): void {
  for (const consumer of names) {
    const states = read?.find(({ name }) => name === consumer)?.states ?? undefined;
    for (const status of LABEL_VALUES.status) {
      const count = states && (states.find(({ state }) => state === status)?.count ?? 0);
      metrics.set('waybill_inbox_rows', { consumer, status }, count);
    }
    const open = states?.filter(({ state }) => state !== 'dead').map(({ oldestAgeMs }) => oldestAgeMs ?? 0);
    metrics.set('waybill_inbox_oldest_pending_seconds', { consumer }, open && seconds(Math.max(0, ...open)));
  }
}

function seconds(ms: number | null | undefined): number | undefined {
  return ms == null ? undefined : Math.max(0, ms) / 1000;
}
