import fc from 'fast-check';
import { expect, test } from 'vitest';
import { MAX_BYTES, MAX_MESSAGES, noCounts } from './model-relay.js';
import { STATES, type State } from './model-database.js';
import { FATES, World, type Fate, type RowPlan, type Step } from './model-world.js';

const few = fc.integer({ min: 1, max: 6 });
const step = <T extends Step>(weight: number, shape: { [K in keyof T]: fc.Arbitrary<T[K]> }) => ({
  weight,
  arbitrary: fc.record(shape) as unknown as fc.Arbitrary<Step>,
});
const name = <T extends string>(...names: T[]): fc.Arbitrary<T> => fc.constantFrom(...names);

const plans: fc.Arbitrary<RowPlan> = fc.record({
  fate: fc.oneof(
    { weight: 3, arbitrary: fc.constant('ok' as const) },
    { weight: 2, arbitrary: fc.constantFrom(...FATES) },
  ),
  bytes: fc.integer({ min: 0, max: 60 }),
  deleted: fc.integer({ min: 0, max: 4 }).map((chance) => chance === 4),
  key: fc.nat({ max: 3 }),
  state: fc.oneof(
    { weight: 12, arbitrary: fc.constant('ready' as const) },
    { weight: 1, arbitrary: fc.constantFrom(...STATES) },
  ),
});

const commits = step(6, {
  do: name('commit'),
  rows: fc.array(plans, { maxLength: 4 }),
  gap: fc.integer({ min: 0, max: 2 }),
  standby: fc.integer({ min: 0, max: 6 }).map((chance) => chance === 6),
});

const steps = fc.array(
  fc.oneof(
    commits,
    step(1, { do: name('write'), bytes: fc.integer({ min: 1, max: 50 }) }),
    step(6, { do: name('send', 'process'), count: few }),
    step(8, { do: name('database', 'broker'), count: few }),
    step(5, { do: name('confirm'), which: fc.nat({ max: 5 }), multiple: fc.boolean() }),
    step(4, { do: name('pass time'), ms: fc.constantFrom(10, 200, 1_000, 30_000) }),
    step(4, { do: name('keepalive', 'due', 'sweep') }),
    step(2, { do: name('kill channel', 'lock', 'crash server', 'cancel', 'cancel'), which: fc.nat({ max: 6 }) }),
    step(2, { do: name('retry', 'discard', 'refuse', 'cancel slowly'), which: fc.nat({ max: 6 }) }),
    step(1, { do: name('key lock') }),
    step(4, { do: name('run', 'run', 'burst'), count: few }),
    step(1, { do: name('restart'), late: fc.boolean() }),
    step(2, { do: name('unlock', 'lock timeout', 'standby answers', 'exchange', 'block') }),
  ),
  { minLength: 20, maxLength: 120, size: 'max' },
);

test('O1-O7, F1-F9, F68-F76, F88, F89: whatever happens in whatever order, nothing unsettled is passed, and all of it arrives', async () => {
  const counters = noCounts();
  await fc.assert(
    fc.asyncProperty(steps, async (all) => {
      const world = new World(counters);
      await world.startRelay();
      for (const each of all) await world.apply(each);
      await world.heal();
      world.checkEnd();
      world.checkCopies();
    }),
    { timeout: 10_000, numRuns: Number(process.env['WAYBILL_PROPERTY_RUNS'] ?? 300) },
  );
  // The steps must have led everywhere, or the property says little. There is no table pass here, nothing is accepted.
  const { accepted, rebuilt, blocked, ...others } = counters;
  expect([accepted, rebuilt, blocked]).toEqual([0, 0, 0]);
  for (const [counter, count] of Object.entries(others)) expect(count, counter).toBeGreaterThan(0);
}, 120_000);

test('3.5, O1-O3, F75: strict order: first copies of a key keep their order, one in flight, whatever is held, retried, discarded or lost', async () => {
  const counters = noCounts();
  await fc.assert(
    fc.asyncProperty(steps, async (all) => {
      const world = new World(counters, 'strict');
      await world.startRelay();
      for (const each of all) await world.apply(each);
      await world.heal();
      world.checkEnd();
      world.checkCopies();
    }),
    { timeout: 10_000, numRuns: Number(process.env['WAYBILL_PROPERTY_RUNS'] ?? 1_000) },
  );
  const { accepted, rebuilt, ...others } = counters;
  expect([accepted, rebuilt]).toEqual([0, 0]);
  for (const [counter, count] of Object.entries(others)) expect(count, counter).toBeGreaterThan(0);
}, 120_000);

/** Parked and blocked rows that somebody else writes are told of by the log alone: left out where there may be none. */
const passPlans: fc.Arbitrary<RowPlan> = plans.map((plan) => ({
  ...plan,
  state: plan.state === 'blocked' || plan.state === 'parked' ? ('scheduled' as const) : (plan.state ?? 'ready'),
}));

/** As above, and slots are lost; the session dies in the middle of a table pass, beside rows that are locked and refused. */
const passSteps = (fromLog: boolean, deletes: boolean, ...losses: ('restart' | 'lose slot')[]): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.oneof(
      step(6, {
        do: name('commit'),
        rows: fc.array(
          passPlans.map((plan) => ({ ...plan, deleted: deletes && plan.deleted })),
          { maxLength: 4 },
        ),
        // No seqs out of the order in which rows can be seen: where there is no log, that is the order.
        gap: fc.integer({ min: 0, max: 1 }),
        standby: fc.integer({ min: 0, max: 9 }).map((chance) => fromLog && chance === 9),
      }),
      step(8, { do: name('run', 'run', 'run', 'burst'), count: few }),
      step(4, { do: name('database', 'broker', 'process', 'send'), count: few }),
      step(3, { do: name('confirm'), which: fc.nat({ max: 5 }), multiple: fc.boolean() }),
      step(4, { do: name('lock', 'lock', 'refuse', 'cancel', 'cancel slowly'), which: fc.nat({ max: 9 }) }),
      step(2, { do: name('retry', 'discard', 'kill channel', 'crash server'), which: fc.nat({ max: 9 }) }),
      step(4, { do: name('due', 'due', 'keepalive', 'sweep', 'standby answers') }),
      step(2, { do: name('unlock', 'exchange', 'lock timeout') }),
      step(2, { do: name(...losses), late: fc.boolean() }),
      step(3, { do: name('pass time'), ms: fc.constantFrom(10, 200, 1_000, 30_000) }),
    ),
    { minLength: 20, maxLength: 120, size: 'max' },
  );

test.each([
  ['3.4, F8, F10, F23', 'pipelined', 'nothing'],
  ['3.4, 3.5, F8, F10, F23', 'strict', 'nothing'],
  ['3.4', 'pipelined', 'table'],
  ['3.4, 3.5', 'strict', 'table'],
] as const)(
  '%s, O1-O7: %s, from %s: table passes and polls, cut at any step, beside locked, refused and withdrawn rows: nothing is lost, nothing withdrawn goes out, keys keep their order',
  async (_, ordering, from) => {
    const counters = noCounts();
    // With strict order a deleted row that is written during a pass may come after one that the pass has read.
    const all =
      from === 'table'
        ? passSteps(false, false, 'restart')
        : passSteps(true, ordering === 'pipelined', 'restart', 'lose slot');
    await fc.assert(
      fc.asyncProperty(all, async (each) => {
        const world = new World(counters, ordering, from);
        await world.startRelay();
        for (const one of each) await world.apply(one);
        await world.heal();
        world.checkEnd();
        world.checkCopies();
      }),
      { timeout: 10_000, numRuns: Number(process.env['WAYBILL_PROPERTY_RUNS'] ?? 200) },
    );
    for (const name of ['published', 'settled', 'scheduled', 'parked', 'resent'] as const) {
      expect(counters[name], name).toBeGreaterThan(0);
    }
    if (from === 'nothing') expect(counters.rebuilt).toBeGreaterThan(0);
  },
  120_000,
);

/** Rows of two keys, most of which wait; people lock, discard and retry them, and the relay dies again and again. */
const lockedSteps = fc.array(
  fc.oneof(
    step(5, {
      do: name('commit'),
      rows: fc.array(
        fc.record({
          fate: fc.constantFrom<Fate>('ok', 'ok', 'unroutable', 'sometimes', 'bad_header'),
          bytes: fc.constant(1),
          deleted: fc.integer({ min: 0, max: 6 }).map((chance) => chance === 6),
          key: fc.integer({ min: 1, max: 2 }),
          state: fc.constantFrom<State>(...Array<State>(12).fill('ready'), ...STATES),
        }),
        { minLength: 1, maxLength: 3 },
      ),
      gap: fc.integer({ min: 0, max: 2 }),
      standby: fc.integer({ min: 0, max: 9 }).map((chance) => chance === 9),
    }),
    step(6, { do: name('run', 'run', 'run', 'burst'), count: few }),
    step(4, { do: name('database', 'send'), count: few }),
    step(4, { do: name('lock', 'lock', 'discard', 'retry', 'refuse'), which: fc.nat({ max: 9 }) }),
    step(3, { do: name('due', 'due', 'keepalive', 'sweep', 'standby answers') }),
    step(1, { do: name('unlock', 'unlock', 'exchange', 'lock timeout') }),
    step(2, { do: name('restart'), late: fc.boolean() }),
    step(1, { do: name('crash server'), which: fc.nat({ max: 6 }) }),
    step(2, { do: name('pass time'), ms: fc.constantFrom(200, 1_000, 30_000) }),
  ),
  { minLength: 20, maxLength: 120, size: 'max' },
);

test('3.5, F120: strict order: rows that stay locked over restarts, behind and before rows that the table holds', async () => {
  await fc.assert(
    fc.asyncProperty(lockedSteps, async (all) => {
      const world = new World(noCounts(), 'strict');
      await world.startRelay();
      for (const each of all) await world.apply(each);
      await world.heal();
      world.checkEnd();
      world.checkCopies();
    }),
    { timeout: 10_000, numRuns: Number(process.env['WAYBILL_PROPERTY_RUNS'] ?? 500) },
  );
}, 120_000);

test.each(['bad_header', 'later', 'expired'] as const)(
  'O4, F45: many %s rows in one transaction wait for a slow database in the log, not in memory',
  async (fate) => {
    const world = new World();
    await world.startRelay();
    const rows = Array.from({ length: 150 }, () => ({ fate, bytes: 30, deleted: false }));
    await world.apply({ do: 'commit', rows, gap: 1, standby: false });
    for (let n = 0; n < 60; n += 1) {
      // Each step checks how many rows are unsettled.
      await world.apply({ do: 'send', count: 3 });
      expect(world.relay.settler.heldBytes).toBeLessThanOrEqual(MAX_BYTES + 30);
    }
    expect(world.relay.works.size).toBeGreaterThan(1);
    await world.apply({ do: 'run', count: 200 });
    await world.heal();
    world.checkEnd();
  },
);

test('a session that fails just as an exchange is found, with the window full, ends at once', async () => {
  const world = new World();
  await world.startRelay();
  const row = { fate: 'ok' as const, bytes: 1, deleted: false };
  await world.apply({ do: 'commit', rows: [row, row, row, { ...row, fate: 'sometimes' }], gap: 1, standby: false });
  await world.apply({ do: 'send', count: 6 });
  await world.apply({ do: 'broker', count: 2 });
  expect([world.relay.window.messages, world.relay.brokerCalls.size]).toEqual([3, 1]);
  world.relay.brokerCalls.step();
  world.relay.brokerCalls.step();
  // The answer is there and not yet read.
  await world.relay.lose(false);
});

test('3.3, O3: a cancelled row behind an unsettled one stays in the table, so that a restart does not send it', async () => {
  const world = new World();
  await world.startRelay();
  const plan = { bytes: 0, deleted: false };
  await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'ok' }], gap: 0, standby: true });
  await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'later' }], gap: 0, standby: false });
  await world.apply({ do: 'run', count: 4 });
  await world.apply({ do: 'cancel', which: 0 });
  expect(world.database.cancelled.size).toBe(1);
  for (let n = 0; n < 3; n += 1) {
    await world.apply({ do: 'sweep' });
    await world.apply({ do: 'keepalive' });
    await world.apply({ do: 'run', count: 6 });
  }
  expect(world.database.rows.map(({ state }) => state)).toContain('cancelled');
  await world.apply({ do: 'restart', late: true });
  await world.heal();
  world.checkEnd();
});

test('F120 3.5: a row that is to be held and stays locked stops no other key, however many rows come behind it', async () => {
  const counters = noCounts();
  const world = new World(counters, 'strict');
  await world.startRelay();
  const row = (fate: Fate, key: number): RowPlan => ({ fate, key, bytes: 5, deleted: false });
  const write = async (...rows: RowPlan[]): Promise<void> => {
    await world.apply({ do: 'commit', rows, gap: 1, standby: false });
    await world.apply({ do: 'run', count: 8 });
  };
  const stateOf = (key: number): string[] =>
    world.database.rows.filter((each) => each.row.key === `key ${key}`).map(({ state }) => state);
  await world.apply({ do: 'commit', rows: [row('bad_header', 1)], gap: 1, standby: false });
  await world.apply({ do: 'lock', which: 0 });
  for (const restart of [false, true, true]) {
    if (restart) await world.apply({ do: 'restart', late: false });
    for (let n = 0; n < MAX_MESSAGES * 3; n += 1) await write(row('ok', 1), row('ok', 1), row('ok', 2));
    await world.apply({ do: 'run', count: 60 });
    expect(stateOf(2)).toEqual([]);
    expect(world.relay.works.size).toBe(1);
  }
  const [first, ...others] = stateOf(1);
  expect([first, new Set(others), others.length]).toEqual(['ready', new Set(['blocked']), MAX_MESSAGES * 18]);
  await world.heal();
  world.checkEnd();
});

test('3.5: a locked row goes before the one behind it, although that one is in the table when a restart comes between', async () => {
  const world = new World(noCounts(), 'strict');
  await world.startRelay();
  const plan = { bytes: 0, deleted: false, key: 2 };
  await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'unroutable' }], gap: 0, standby: false });
  await world.apply({ do: 'lock', which: 0 });
  await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'ok' }], gap: 0, standby: true });
  await world.apply({ do: 'run', count: 5 });
  await world.apply({ do: 'standby answers' });
  await world.apply({ do: 'run', count: 2 });
  expect(world.database.rows.map(({ state }) => state)).toEqual(['ready', 'blocked']);
  await world.apply({ do: 'unlock' });
  await world.apply({ do: 'restart', late: false });
  await world.heal();
  world.checkEnd();
});

test.each([
  ['the sweep', false],
  ['the log', true],
])(
  '3.6, O3: a row that was due and went out before a crash is too late to cancel when %s brings it again',
  async (_by, behind) => {
    const world = new World();
    await world.startRelay();
    const plan = { bytes: 0, deleted: false };
    // A row that cannot be settled holds the position back.
    if (behind) await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'ok' }], gap: 0, standby: true });
    await world.apply({ do: 'commit', rows: [{ ...plan, fate: 'later' }], gap: 0, standby: false });
    await world.apply({ do: 'run', count: 4 });
    expect(world.database.rows.map(({ state }) => state)).toContain('scheduled');
    await world.apply({ do: 'pass time', ms: 2_000 });
    await world.apply({ do: 'due' });
    for (let n = 0; n < 40 && world.broker.queue.length < (behind ? 2 : 1); n += 1) {
      await world.apply({ do: 'database', count: 1 });
      await world.apply({ do: 'broker', count: 1 });
      await world.apply({ do: 'process', count: 1 });
    }
    expect(world.broker.queue.map(({ type }) => type)).toContain('later');
    await world.apply({ do: 'restart', late: false });
    for (let n = 0; n < 60; n += 1) {
      if (n % 10 === 0) await world.apply({ do: 'sweep' });
      await world.apply({ do: n % 3 === 0 ? 'keepalive' : 'cancel', which: 0 });
      await world.apply({ do: 'send', count: 1 });
      await world.apply({ do: 'database', count: 1 });
      await world.apply({ do: 'broker', count: 1 });
    }
    expect(world.database.cancelled.size).toBe(0);
    await world.heal();
    world.checkEnd();
  },
);

test('3.5: a blocked row that somebody else wrote, with whatever number, goes behind those that came before it', async () => {
  const world = new World(noCounts(), 'strict');
  await world.startRelay();
  const row = (fate: Fate, state: State): RowPlan => ({ fate, state, key: 2, bytes: 0, deleted: false });
  await world.apply({ do: 'commit', rows: [row('bad_header', 'ready')], gap: 0, standby: false });
  await world.apply({ do: 'run', count: 6 });
  // Both are in the table, and the log has brought neither.
  await world.apply({ do: 'commit', rows: [row('ok', 'ready')], gap: 0, standby: false });
  await world.apply({ do: 'commit', rows: [row('ok', 'blocked')], gap: 0, standby: false });
  await world.apply({ do: 'discard', which: 0 });
  for (let n = 0; n < 6; n += 1) {
    await world.apply({ do: 'due' });
    await world.apply({ do: 'database', count: 3 });
    await world.apply({ do: 'process', count: 1 });
  }
  expect(world.broker.queue).toEqual([]);
  await world.heal();
  world.checkEnd();
  expect(world.broker.queue.map(({ messageId }) => messageId.slice(-1))).toEqual(['1', '2']);
});
