import type { Config } from '../config/load.js';
import { inspectIdleSlot, shedSlot } from '../postgres/shed.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { withDatabase } from './session.js';

const INTERVAL_MS = 10_000;
const LIMITS = { lockTimeoutMs: 1_000, statementTimeoutMs: 10_000, workTimeoutMs: 20_000 };

/**
 * Watches the WAL that the relay's slot keeps while the broker is away: nobody streams then, and the server's disk
 * fills. Past `maxKeptWal` the stream's position is given up, and the relay comes back by a table pass; no row is lost,
 * because pending rows are in the table. Acts only on a slot that nobody reads and an epoch that stood still between two
 * looks, so never beside a relay at work.
 */
export async function watchKeptWal(
  config: () => Config,
  log: Logger,
  clock: Clock,
  isAway: () => boolean,
  signal: AbortSignal,
): Promise<void> {
  let seenEpoch: string | undefined;
  let refusedAtEpoch: string | undefined;
  while (!signal.aborted) {
    await pause(clock, INTERVAL_MS, signal);
    const { database, relay } = config();
    if (relay.source !== 'wal' || !isAway()) {
      seenEpoch = undefined;
      continue;
    }
    try {
      await withDatabase(database, LIMITS, async (client) => {
        const slot = await inspectIdleSlot(client, database.schema, relay.name);
        const epochStands = slot !== undefined && slot.epoch === seenEpoch;
        seenEpoch = slot?.epoch;
        if (!slot || !epochStands || slot.keptBytes <= relay.maxKeptWalBytes) return;
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
      log.debug({ err: error }, 'the kept WAL could not be looked at');
    }
  }
}
