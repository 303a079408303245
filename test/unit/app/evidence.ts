import type { RelayEntry, SlotEntry } from '../../../src/postgres/inspect.js';

/** A healthy slot, but for what is changed. */
export function slotEntry(change: Partial<SlotEntry>): SlotEntry {
  return {
    name: 'waybill_shop_waybill_default',
    plugin: 'pgoutput',
    database: 'shop',
    active: true,
    activePid: 4711,
    walStatus: 'reserved',
    restartLsn: '0/1000000',
    confirmedFlushLsn: '0/1000028',
    keptWalBytes: 1024,
    lagBytes: 512,
    safeWalBytes: null,
    invalidationReason: null,
    failover: null,
    ...change,
  };
}

/** A relay that works with PostgreSQL cluster 7000 and rabbit@a, but for what is changed. */
export function relayEntry(change: Partial<RelayEntry>): RelayEntry {
  return {
    name: 'default',
    slot: 'waybill_shop_waybill_default',
    source: 'wal',
    epoch: '3',
    holder: 'host-a:4242',
    holderSince: new Date('2026-01-01T00:00:00Z'),
    checkpointLsn: '0/1000028',
    checkpointAt: new Date('2026-01-01T01:00:00Z'),
    checkpointAgeMs: 2_000,
    systemIdentifier: '7000',
    timeline: 1,
    brokerCluster: 'rabbit@a',
    brokerVhost: '/',
    passUptoSeq: null,
    insertThenDeleteSeen: false,
    ...change,
  };
}
