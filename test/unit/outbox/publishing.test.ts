import fc from 'fast-check';
import { expect, test } from 'vitest';
import { turn } from '../../support/manual-clock.js';
import { MAX_KILLS, Suspects } from '../../../src/core/suspects.js';
import { Bench } from './scripted-broker.js';

async function openBench(bench = new Bench()): Promise<Bench> {
  await bench.publishing.open();
  return bench;
}

test('F72, F78-F80: the one that kills the channel alone is refused; its neighbours go out in their order', async () => {
  const bench = await openBench();
  bench.publish('abcd');
  bench.channel.die(406);
  bench.publish('e');
  await turn();
  bench.channel.events.onAck(1, false);
  await turn();
  bench.channel.die(406);
  await turn();
  expect(bench.sent).toEqual(['abcd', 'ab', 'c']);
  bench.channel.events.onAck(1, false);
  await turn();
  bench.channel.events.onAck(2, false);
  await turn();
  bench.publish('f');
  bench.channel.events.onAck(4, true);
  expect(bench.sent).toEqual(['abcd', 'ab', 'cdef']);
  const told = ['died 4', 'confirmed a', 'refused b refused_by_broker', 'died 0', 'confirmed c', 'confirmed d'];
  expect(bench.told).toEqual([...told, 'confirmed e', 'confirmed f']);
  expect([bench.window.messages, bench.window.bytes, bench.publishing.outstanding]).toEqual([0, 0, 0]);
});

test('F72, F78: suspects of an earlier session go alone, everybody else flows, and the killer is named', async () => {
  const suspects = new Suspects();
  const first = new Bench(suspects);
  await first.publishing.open();
  first.publish('abcd');
  first.channel.events.onAck(1, false);
  first.channel.die();
  expect(first.publishing.lost).toEqual({ messageIds: ['b', 'c', 'd'], alone: false });
  suspects.accuse(first.publishing.lost.messageIds, first.publishing.lost.alone, '541');
  await first.publishing.close();
  for (let kill = 1; kill <= MAX_KILLS; kill += 1) {
    const bench = new Bench(suspects);
    await bench.publishing.open();
    bench.publish('abcdef');
    // With a killer known, its neighbours are free.
    expect(bench.sent).toEqual([kill === 1 ? 'a' : 'ab']);
    for (let tag = 1; tag <= 2; tag += 1) {
      bench.channel.events.onAck(tag, false);
      await turn();
    }
    expect(bench.sent).toEqual(['abc']);
    bench.channel.die();
    expect(bench.publishing.lost).toEqual({ messageIds: ['c'], alone: true });
    suspects.accuse(['c'], true, '541');
    await bench.publishing.close();
  }
  const last = new Bench(suspects);
  await last.publishing.open();
  last.publish('cdef');
  await turn();
  expect(last.sent).toEqual(['def']);
  expect(last.told).toEqual(['refused c refused_by_broker']);
  expect([last.window.messages, last.publishing.outstanding]).toEqual([3, 3]);
});

test('F75: a suspect that is nacked stays alone when it goes again', async () => {
  const suspects = new Suspects();
  suspects.accuse(['b'], false, '541');
  const bench = new Bench(suspects);
  await bench.publishing.open();
  bench.publish('ab');
  bench.channel.events.onAck(1, false);
  await turn();
  bench.channel.events.onNack(2, false);
  await turn();
  bench.publish('c');
  bench.clock.advance(100);
  await turn();
  expect(bench.sent).toEqual(['abc']);
  bench.channel.events.onAck(3, false);
  await turn();
  expect(bench.sent).toEqual(['abcb']);
  bench.publish('d');
  expect(bench.sent).toEqual(['abcb']);
  bench.channel.events.onAck(4, false);
  await turn();
  expect(bench.sent).toEqual(['abcbd']);
});

test('F68, F87: a channel that is lost without a reply code refuses nobody, also one that was alone', async () => {
  const bench = await openBench();
  bench.publish('ab');
  for (let n = 0; n < 3; n += 1) {
    bench.channel.die();
    await turn();
  }
  expect(bench.sent).toEqual(['ab', 'a', 'a', 'a']);
  bench.channel.events.onAck(1, false);
  await turn();
  bench.channel.events.onAck(2, false);
  expect(bench.told.filter((each) => !each.startsWith('died'))).toEqual(['confirmed a', 'confirmed b']);
});

test('F72: a channel exception while several are in flight refuses none of them; first each is tried alone', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.channel.die(404);
  await turn();
  bench.channel.events.onAck(1, false);
  expect(bench.told).toEqual(['died 1', 'confirmed a']);
});

test('F72: an exchange that is gone is found before it kills another channel', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.publish('b', 'gone');
  bench.publish('c');
  bench.missing.add('gone');
  bench.channel.die(404);
  await turn();
  bench.channel.events.onAck(1, false);
  await turn();
  bench.channel.events.onAck(2, false);
  expect(bench.sent).toEqual(['abc', 'ac']);
  expect(bench.told).toEqual(['died 3', 'confirmed a', 'refused b exchange_missing', 'confirmed c']);
  expect(bench.window.messages).toBe(0);
});

test('F79, F81: what the client cannot encode is refused alone, and no delivery tag is counted for it', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.channel.throwNext = new Error("Field 'headers' is the wrong type");
  bench.publish('bc');
  bench.channel.events.onAck(2, false);
  expect(bench.told).toEqual(['refused b bad_property', 'confirmed c']);
  expect(bench.publishing.outstanding).toBe(1);
});

test('a send on a channel that is just closing waits for the next one, in its place', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.channel.isOpen = false;
  bench.publish('bc');
  bench.channel.die(320);
  await turn();
  bench.channel.events.onAck(1, false);
  await turn();
  expect(bench.sent).toEqual(['a', 'abc']);
  expect(bench.told).toEqual(['died 1', 'confirmed a']);
});

test('F75, F76: a nack is tried again, later and later, and waits in the table in the end', async () => {
  const bench = await openBench();
  bench.publish('a');
  const waits: number[] = [];
  const isTold = (): boolean => bench.told.length > 0;
  for (let nack = 1; !isTold(); nack += 1) {
    bench.channel.events.onNack(nack, false);
    const fromMs = bench.clock.now();
    while (bench.channel.sent.length === nack && !isTold()) bench.clock.advance(1);
    waits.push(bench.clock.now() - fromMs);
    expect(waits.length).toBeLessThan(20);
  }
  expect(bench.told).toEqual(['nacked a']);
  expect(waits.slice(0, -1)).toEqual([...waits.slice(0, -1)].sort((a, b) => a - b));
  expect(waits.reduce((a, b) => a + b, 0)).toBeGreaterThan(5_000);
  expect(waits.reduce((a, b) => a + b, 0)).toBeLessThan(30_000);
  expect(bench.window.messages).toBe(0);
});

test('F75: a message that was nacked keeps its credit; a confirm forgets its nacks', async () => {
  const bench = await openBench();
  bench.publish('ab');
  bench.channel.events.onNack(2, true);
  expect([bench.window.messages, bench.publishing.outstanding]).toEqual([2, 2]);
  bench.clock.advance(100);
  bench.channel.events.onAck(4, true);
  expect(bench.sent).toEqual(['abab']);
  expect(bench.told).toEqual(['confirmed a', 'confirmed b']);
});

test('F73, fact 30: a return before its ack is a return', async () => {
  const bench = await openBench();
  bench.publish('ab');
  bench.channel.events.onReturn('b', { replyCode: 312, replyText: 'NO_ROUTE' });
  bench.channel.events.onAck(2, true);
  expect(bench.told).toEqual(['confirmed a', 'returned b 312']);
});

test('F89: a late word of an old channel says nothing about the new one', async () => {
  const bench = await openBench();
  bench.publish('ab');
  const old = bench.channel;
  old.die();
  await turn();
  old.events.onAck(2, true);
  old.events.onNack(1, false);
  old.events.onReturn('a', { replyCode: 312, replyText: 'NO_ROUTE' });
  bench.channel.events.onAck(1, false);
  expect(bench.told).toEqual(['died 2', 'confirmed a']);
});

test('F70, F87: no confirm for too long fails the session; a blocked connection does not count', async () => {
  const bench = await openBench();
  bench.clock.advance(60_000);
  bench.publish('a');
  bench.isBlocked = true;
  bench.clock.advance(300_000);
  expect(bench.failure).toBeUndefined();
  bench.isBlocked = false;
  bench.clock.advance(29_000);
  expect(bench.failure).toBeUndefined();
  bench.clock.advance(2_000);
  expect(bench.failure).toMatchObject({ code: 'WAYBILL_BROKER_STALLED' });
});

test('a channel that dies as it opens fails the session, and nothing waits for it for ever', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.channel.die();
  bench.channel.die();
  await turn();
  expect(bench.failure).toMatchObject({ code: 'WAYBILL_BROKER_UNAVAILABLE' });
});

test('a connection that opens no channel any more fails the session', async () => {
  const bench = await openBench();
  bench.publish('a');
  bench.openFails = new Error('connection closed');
  bench.channel.die();
  await turn();
  expect(bench.failure).toBe(bench.openFails);
});

test('after close nothing is sent, told or left ticking', async () => {
  const bench = await openBench();
  bench.publish('ab');
  bench.channel.events.onNack(1, false);
  await bench.publishing.close();
  bench.publish('c');
  bench.channel.events.onAck(2, false);
  bench.channel.die(406);
  bench.clock.advance(60_000);
  await turn();
  expect(bench.sent).toEqual(['ab']);
  expect([bench.told, bench.failure, bench.clock.pending]).toEqual([[], undefined, 0]);
});

test('a session that ends while its first channel opens leaves nothing ticking', async () => {
  const bench = new Bench();
  const opened = bench.publishing.open();
  await bench.publishing.close();
  await opened;
  bench.publish('a');
  expect([bench.clock.pending, bench.sent]).toEqual([0, ['']]);
});

const steps = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.constant('publish' as const) },
    { weight: 4, arbitrary: fc.constantFrom('ack' as const, 'ack all' as const, 'turn' as const) },
    { weight: 1, arbitrary: fc.constantFrom('die' as const, 'nack' as const, 'time' as const) },
  ),
  { maxLength: 60, size: 'max' },
);

/** Again and again until all of it has its word. */
const LAST_STEPS = ['turn', 'ack', 'time'] as const;

test('O5, F88: whatever dies, first copies keep their order and each message gets one final word', async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (all) => {
      // Its broker takes its time, which is another test: it may say one word a second about 60 messages.
      const bench = await openBench(new Bench(new Suspects(), Infinity));
      let names = '';
      const next = new Map<object, number>();
      const tagOf = (): number => next.get(bench.channel) ?? 1;
      const word = (call: (tag: number) => void): void => {
        if (tagOf() > bench.channel.sent.length || !bench.channel.isOpen) return;
        call(tagOf());
        next.set(bench.channel, tagOf() + 1);
      };
      for (const step of [...all, ...Array.from({ length: 600 }, (_, n) => LAST_STEPS[n % 3]!)]) {
        if (step === 'publish') {
          names += String.fromCharCode(97 + names.length);
          bench.publish(names.slice(-1));
        } else if (step === 'turn') await turn();
        else if (step === 'time') bench.clock.advance(1_000);
        else if (step === 'die') {
          // A channel that dies before it is open ends the session; that is another test.
          await turn();
          bench.channel.die();
        } else if (step === 'nack') word((tag) => bench.channel.events.onNack(tag, false));
        else if (step === 'ack') word((tag) => bench.channel.events.onAck(tag, false));
        else if (bench.channel.sent.length > 0) {
          next.set(bench.channel, bench.channel.sent.length + 1);
          bench.channel.events.onAck(0, true);
        }
      }
      const first = [...new Set(bench.channels.flatMap(({ sent }) => sent))];
      expect(first.join('')).toBe(names);
      const final = bench.told.filter((each) => !each.startsWith('died')).sort();
      expect(final).toEqual(Array.from(names).map((name) => `confirmed ${name}`));
      expect([bench.window.messages, bench.publishing.outstanding, bench.failure]).toEqual([0, 0, undefined]);
    }),
    { numRuns: Number(process.env['WAYBILL_PROPERTY_RUNS'] ?? 200), timeout: 10_000 },
  );
}, 60_000);
