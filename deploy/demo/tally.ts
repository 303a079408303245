import type { Consumer } from './consumer.js';
import { count } from './screen.js';
import type { Shop } from './shop.js';

/** The outcome: what was committed held against what arrived. */
export interface Tally {
  committed: number;
  rolledBack: number;
  delivered: number;
  duplicates: number;
  lost: string[];
  phantom: string[];
  differing: string[];
  /** Milliseconds from COMMIT to the consumer, ascending. */
  calmMs: number[];
  allMs: number[];
}

/** Counts; `committedIds` is what the database itself says is committed. */
export function tallyUp(shop: Shop, consumer: Consumer, committedIds: ReadonlySet<string>): Tally {
  const lost: string[] = [];
  const differing: string[] = [];
  const calmMs: number[] = [];
  const allMs: number[] = [];
  for (const id of committedIds) {
    const arrival = consumer.arrivals.get(id);
    if (!arrival) {
      lost.push(id);
      continue;
    }
    const order = shop.committed.get(id);
    if (order?.body !== arrival.body) differing.push(id);
    if (!order) continue;
    const ms = arrival.atMs - order.committedAtMs;
    allMs.push(ms);
    if (order.calm) calmMs.push(ms);
  }
  const ascending = (a: number, b: number) => a - b;
  return {
    committed: committedIds.size,
    rolledBack: shop.rolledBack.size,
    delivered: consumer.arrivals.size,
    duplicates: consumer.duplicates,
    lost,
    phantom: [...consumer.arrivals.keys()].filter((id) => !committedIds.has(id)),
    differing,
    calmMs: calmMs.sort(ascending),
    allMs: allMs.sort(ascending),
  };
}

/** Whether every promise was kept. */
export function kept(tally: Tally): boolean {
  return tally.lost.length === 0 && tally.phantom.length === 0 && tally.differing.length === 0;
}

/** The tally as lines of at most 80 columns. */
export function tallyLines(tally: Tally): string[] {
  const row = (name: string, amount: number, remark = '') =>
    `  ${name.padEnd(24)}${count(amount, 8)}   ${remark}`.trimEnd();
  const mustBeNone = (ids: string[], what: string) =>
    ids.length === 0 ? what : `${what}  WRONG, e.g. ${ids[0]!.slice(0, 8)}...`;
  return [
    row('orders committed', tally.committed),
    row('orders rolled back', tally.rolledBack, 'their messages must never be seen'),
    row('messages delivered', tally.delivered, 'each counted once'),
    row('duplicates', tally.duplicates, 'same id again after a crash: allowed'),
    row('lost', tally.lost.length, mustBeNone(tally.lost, 'must be 0')),
    row('phantom', tally.phantom.length, mustBeNone(tally.phantom, 'sent though rolled back: must be 0')),
    row('bodies that differ', tally.differing.length, mustBeNone(tally.differing, 'must be 0')),
    '',
    `  ${'from commit to consumer'.padEnd(24)}${'median'.padStart(12)}${'p99'.padStart(12)}`,
    times('nothing broken', tally.calmMs),
    times('all, outages included', tally.allMs),
    '  (p99: 99 of 100 messages were at least this fast)',
  ];
}

function times(name: string, sorted: readonly number[]): string {
  const at = (share: number) => {
    const ms = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
    if (ms === undefined) return '-';
    return ms < 100 ? `${ms.toFixed(1)} ms` : `${count(Math.round(ms))} ms`;
  };
  return `  ${name.padEnd(24)}${at(0.5).padStart(12)}${at(0.99).padStart(12)}`;
}
