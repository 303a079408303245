import type { Ledger } from './billing.js';
import type { Mischief } from './neighbour.js';
import { count } from './screen.js';
import type { Cast } from './story.js';

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
  /** Sum of all committed orders. */
  orderTotal: string;
  ledger: Ledger;
  /** Orders without exactly one invoice. */
  misbilled: string[];
  duplicatesSkipped: number;
  mischief: Mischief;
}

/** Counts; what is committed and what is billed is asked of the databases themselves. */
export async function tallyUp({ shop, consumer, billing }: Cast, mischief: Mischief): Promise<Tally> {
  const committedIds = await shop.committedIds();
  const ledger = await billing.ledger();
  const invoices = new Map<string, number>();
  for (const id of ledger.invoiced) invoices.set(id, (invoices.get(id) ?? 0) + 1);
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
    orderTotal: await shop.total(),
    ledger,
    misbilled: [
      ...[...committedIds].filter((id) => invoices.get(id) !== 1),
      ...[...invoices.keys()].filter((id) => !committedIds.has(id)),
    ],
    duplicatesSkipped: await billing.duplicates(),
    mischief,
  };
}

/** Whether every promise was kept. */
export function kept(tally: Tally): boolean {
  const { lost, phantom, differing, misbilled, orderTotal, ledger } = tally;
  return [lost, phantom, differing, misbilled].every((each) => each.length === 0) && orderTotal === ledger.total;
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
    row('orders billed once', tally.committed - tally.misbilled.length, mustBeNone(tally.misbilled, 'must be all')),
    row(
      'duplicates skipped',
      tally.duplicatesSkipped,
      `${tally.mischief.duplicates} of the neighbour, the others after crashes`,
    ),
    row('tried again', tally.ledger.retried, 'failed attempts, each later than the one before'),
    row(
      'put off',
      tally.mischief.early,
      `came before their order; ${count(tally.ledger.paid)} of them are applied now`,
    ),
    row('dead', sumOf(tally.ledger.dead), tally.ledger.dead.map((each) => `${each.count} ${each.reason}`).join(', ')),
    `  the shop's orders ${tally.orderTotal}, billed ${tally.ledger.total}: ${tally.orderTotal === tally.ledger.total ? 'equal' : 'NOT EQUAL'}`,
    '',
    `  ${'from commit to consumer'.padEnd(24)}${'median'.padStart(12)}${'p99'.padStart(12)}`,
    times('nothing broken', tally.calmMs),
    times('all, outages included', tally.allMs),
    '  (p99: 99 of 100 messages were at least this fast)',
  ];
}

function sumOf(counts: readonly { count: number }[]): number {
  return counts.reduce((sum, each) => sum + each.count, 0);
}

function times(name: string, sorted: readonly number[]): string {
  const at = (share: number) => {
    const ms = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
    if (ms === undefined) return '-';
    return ms < 100 ? `${ms.toFixed(1)} ms` : `${count(Math.round(ms))} ms`;
  };
  return `  ${name.padEnd(24)}${at(0.5).padStart(12)}${at(0.99).padStart(12)}`;
}
