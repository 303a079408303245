import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { inspectIdleSlot, shedSlot } from '../postgres/shed.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { withDatabase } from './session.js';

const INTERVAL_MS = 10_000;
const LIMITS = { lockTimeoutMs: 1_000, statementTimeoutMs: 10_000, workTimeoutMs: 20_000 };

/**
 * Watches the WAL that the relay's slot keeps while the broker is away: nobody streams then, and the server's disk
 * fills. Past `maxKeptWal` the stream's position is given up, and the relay comes back by a table pass; no row is lost,
 * because pending rows are in the table. Acts only on a slot that nobody reads, while epoch and checkpoint stood still
 * between two looks: beside a relay at work, also one in a table pass, it does nothing.
 */
export async function watchKeptWal(
  config: () => Config,
  log: Logger,
  clock: Clock,
  isAway: () => boolean,
  signal: AbortSignal,
): Promise<void> {
  let seen: string | undefined;
  let complaint: string | undefined;
  let refusedAtEpoch: string | undefined;
  while (!signal.aborted) {
    await pause(clock, INTERVAL_MS, signal);
    const { database, relay } = config();
    if (relay.source !== 'wal' || !isAway()) {
      seen = undefined;
      continue;
    }
    try {
      await withDatabase(database, LIMITS, async (client) => {
        const slot = await inspectIdleSlot(client, database.schema, relay.name);
        const before = seen;
        seen = slot && `${slot.epoch} ${slot.settledAt ?? ''}`;
        if (!slot || seen !== before || slot.keptBytes <= relay.maxKeptWalBytes) return;
        const facts = { keptWalBytes: slot.keptBytes, maxKeptWalBytes: relay.maxKeptWalBytes };
        if (slot.insertThenDeleteSeen) {
          if (refusedAtEpoch !== slot.epoch) {
            log.error(
              facts,
              'the slot keeps more WAL than maxKeptWal, and is kept: applications delete rows that only it can bring',
            );
          }
          refusedAtEpoch = slot.epoch;
          return;
        }
        if (await shedSlot(client, database.schema, relay.name, slot.epoch)) {
          log.error(
            facts,
            'gave up the replication slot because it kept more WAL than maxKeptWal; the table will be read',
          );
        }
      });
    } catch (error) {
      const code = error instanceof WaybillError ? error.code : String(error);
      // Told once: while PostgreSQL is away as well, the sessions say so at each attempt.
      if (code !== complaint) log.warn({ err: error }, 'the WAL that the slot keeps could not be looked at');
      complaint = code;
    }
  }
}
