import { expect, test } from 'vitest';
import type { Admission } from '../../../src/outbox/admission.js';
import type { LaneTraffic } from '../../../src/outbox/lane-traffic.js';
import type { Table } from '../../../src/outbox/ports.js';
import type { Settler } from '../../../src/outbox/settler.js';
import { TableFeed } from '../../../src/outbox/table-feed.js';
import { tableWork, Works } from '../../../src/outbox/work.js';
import { Turns } from '../../../src/runtime/turns.js';
import { outboxRow } from '../../support/outbox-rows.js';
import { noCounts } from './model-relay.js';

const silent = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

test('3.4: a row that the stream brings and settles while the answer to the sweep is on its way is not sent again', async () => {
  const works = new Works();
  const rows = ['1', '2', '3'].map((seq) => outboxRow({ seq, id: `id-${seq}` }));
  const admitted: string[] = [];
  let listed = false;
  const table = {
    position: () => Promise.resolve(0n),
    highestSeq: () => Promise.resolve(3n),
    readyRows: () => {
      const list = listed ? [] : rows.map(({ seq }) => ({ seq, bytes: 1 }));
      listed = true;
      return Promise.resolve(list);
    },
    readRows: () => {
      // The answer shows all three; meanwhile the first is published and settled.
      const work = tableWork(rows[0]!, 'poll');
      works.add(work);
      works.remove(work);
      return Promise.resolve(rows.map((row) => ({ row, holdNo: null })));
    },
  } as unknown as Table;
  const admission = {
    admit({ row }: { row: { seq: string } }) {
      admitted.push(row.seq);
      if (row.seq !== '2') return undefined;
      // So does the third while the second waits for room.
      const work = tableWork(rows[2]!, 'poll');
      works.add(work);
      return Promise.resolve().then(() => works.remove(work));
    },
  } as unknown as Admission;
  const feed = new TableFeed({
    table,
    works,
    admission,
    counters: noCounts(),
    log: silent,
    turns: new Turns(),
    check: () => undefined,
    lanes: undefined,
    rowsPerKey: 1,
  });
  expect(await feed.sweep(() => Promise.resolve())).toBe(1);
  expect(admitted).toEqual(['2']);
});

test('3.5: the key of a row that was discarded is asked, also while the row itself must stay', async () => {
  const row = outboxRow({ seq: '1', id: 'id-1', key: 'k' });
  const table = {
    position: () => Promise.resolve(0n),
    withdrawnRows: (after: bigint) => Promise.resolve(after === 0n ? [{ row, state: 'discarded' }] : []),
  } as unknown as Table;
  const asked: string[] = [];
  const lanes = { ask: (keys: readonly string[]) => void asked.push(...keys) } as unknown as LaneTraffic;
  const feed = new TableFeed({
    table,
    works: new Works(),
    admission: {} as unknown as Admission,
    counters: noCounts(),
    log: silent,
    turns: new Turns(),
    check: () => undefined,
    lanes,
    rowsPerKey: 1,
  });
  const settler = { hasPassed: () => false } as unknown as Settler;
  await feed.removeWithdrawn(settler, () => Promise.resolve());
  expect(asked).toEqual(['k']);
});
